"""Setup of a Prefect server and a bucket, as often as one likes: work pools, queues, deployments, automations.

In an environment that names the servers, from the repository's root: python deployments/setup.py
With NOTIFY_URL, an address that takes {"text": ...} as Slack and Mattermost do, automations send notifications to it.
"""

import argparse
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import httpx
import yaml
from botocore.exceptions import BotoCoreError, ClientError
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import PREFECT_API_URL

from dpr_core.redaction import address

HERE = Path(__file__).parent
QUEUES: dict[str, dict[str, dict[str, int]]] = {
    "cpu": {"controllers": {"concurrency_limit": 6}, "urgent": {"priority": 1}},
    "gpu": {"urgent": {"priority": 1}},
    "gpu8": {},
}
"""By work pool, besides its default one. Controllers leave room for the stages that they wait for."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--type", choices=("process", "kubernetes"), default="process", help="of the work pools")
    parser.add_argument("--bucket", help="an S3 bucket to make, at MLFLOW_S3_ENDPOINT_URL")
    arguments = parser.parse_args()
    server = PREFECT_API_URL.value()
    if not server:
        raise SystemExit(
            "error: PREFECT_API_URL is not set; that of `prefect server start` is http://127.0.0.1:4200/api"
        )
    try:
        if arguments.bucket:
            make_bucket(arguments.bucket)
        set_up(arguments.type)
    except (BotoCoreError, ClientError) as error:
        raise SystemExit(f"error: bucket {arguments.bucket}: {error}") from None
    except httpx.HTTPError as error:
        raise SystemExit(f"error: the Prefect server at {address(server)}: {error}") from None
    print(f"There are the work pools {', '.join(QUEUES)}, all deployments (`prefect deployment ls`) and automations.")


def set_up(kind: str) -> None:
    """All that a Prefect server has to hold."""
    with get_client(sync_client=True) as client:
        for pool in QUEUES:
            make_pool(client, pool, kind)
        deploy()
        automations = (HERE / "automations.yaml").read_text(encoding="utf-8")
        make_automations(client, automations)
        if webhook := os.environ.get("NOTIFY_URL"):
            notifications = (HERE / "notifications.yaml").read_text(encoding="utf-8")
            make_automations(client, notifications.replace("BLOCK", notification_block(webhook)))


def make_bucket(name: str) -> None:
    """Of this account; one that is there stays."""
    s3 = boto3.client("s3", endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL"))
    with suppress(s3.exceptions.BucketAlreadyOwnedByYou):
        s3.create_bucket(Bucket=name)


def make_pool(client: SyncPrefectClient, name: str, kind: str) -> None:
    """A work pool and its queues; on Kubernetes a pool that is there takes the template of its jobs anew."""
    template: dict[str, Any] = {}
    if kind == "kubernetes":
        template = {"base_job_template": json.loads((HERE / "kubernetes" / f"{name}.json").read_text(encoding="utf-8"))}
    try:
        client.create_work_pool(WorkPoolCreate(name=name, type=kind, **template))
    except ObjectAlreadyExists:
        if (found := client.read_work_pool(name).type) != kind:
            raise SystemExit(
                f"error: the work pool {name} is of type {found}: delete it, or say --type {found}"
            ) from None
        if template:
            client.update_work_pool(name, WorkPoolUpdate(**template))
    for queue, settings in QUEUES[name].items():
        with suppress(ObjectAlreadyExists):
            client.create_work_queue(queue, work_pool_name=name, **settings)


def deploy() -> None:
    """What prefect.yaml says, in silence unless it fails."""
    command = ["--no-prompt", "deploy", "--all", "--prefect-file", str(HERE / "prefect.yaml")]
    done = subprocess.run([sys.executable, "-m", "prefect", *command], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"error: prefect deploy failed:\n{done.stdout}{done.stderr}")


def notification_block(webhook: str) -> str:
    """The ID of the block that holds the address, which is a secret."""
    block = CustomWebhookNotificationBlock(
        name="dense-path", url="{{address}}", json_data={"text": "{{subject}}: {{body}}"}, secrets={"address": webhook}
    )
    return str(block.save("dense-path", overwrite=True))


def make_automations(client: SyncPrefectClient, text: str) -> None:
    """Those in a text of YAML; one of the same name is replaced."""
    known = {each.name: each.id for each in client.read_automations()}
    for each in yaml.safe_load(text)["automations"]:
        wanted = AutomationCore.model_validate(each)
        if wanted.name in known:
            client.update_automation(known[wanted.name], wanted)
        else:
            client.create_automation(wanted)


if __name__ == "__main__":
    main()
