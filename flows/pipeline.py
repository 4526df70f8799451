"""The Prefect flows: the whole pipeline, and a rerun of any artifact. Stages exchange artifact IDs only."""

import logging
from collections.abc import Mapping
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact

from dpr_core.config.pipeline import PipelineConfig
from flows import recipes
from flows.requests import Alone, Asked, Rerun, Whole
from flows.run_document import pipeline_run, stage_entry
from tasks.artifacts.store import Store
from tasks.graph import Node, execute, plan, preflight
from tasks.prefect_task import stage_task
from tasks.run_stage import Outcome

DEMO = recipes.load("demo")


@flow(name="dense-path", flow_run_name="{config.name}")
def dense_path(config: PipelineConfig = DEMO, force: bool = False) -> dict[str, Any]:
    """Demonstrations -> SFT with checkpoints -> dense reward -> REINFORCE -> judged answers."""
    return run_nodes(Whole(config=config, force=force))


@flow(name="rerun")
def rerun(
    artifact: str, overrides: list[str] | None = None, downstream: bool = False, force: bool = False
) -> dict[str, Any]:
    """Make one artifact again from its stored inputs, with `field=value` overrides; downstream: all built on it too."""
    target = Store.open().resolve(artifact)
    return run_nodes(Rerun(artifact=target, overrides=overrides or [], downstream=downstream, force=force))


@flow(name="stage", flow_run_name="{asked.stage}", validate_parameters=False)
def alone(asked: Alone) -> dict[str, Any]:
    """A single stage again, as it was asked for."""
    return run_nodes(asked)


def run_nodes(asked: Asked) -> dict[str, Any]:
    """Run a graph under one parent run; returns the document that `dpr run --json` prints."""
    # A deployed flow shows on its page why each stage runs.
    logging.getLogger("dense_path").setLevel(logging.INFO)
    store = Store.open()
    nodes, about = asked.nodes(store), asked.about(store)
    not_before = store.pipelines.since(about.request) if asked.force else None
    preflight(nodes, plan(nodes, store, not_before))
    with pipeline_run(store, about) as document:

        def run(node: Node, inputs: dict[str, str]) -> Outcome:
            outcome: Outcome = stage_task(
                stage=node.stage,
                name=node.name,
                config=node.config,
                inputs=inputs,
                parent=document["run_id"],
                not_before=not_before,
            )
            document["stages"].append(stage_entry(outcome))
            return outcome

        execute(nodes, run)
    show_links(store, document)
    return document


def show_links(store: Store, document: Mapping[str, Any]) -> None:
    """Links to the MLflow runs on the flow run's page."""
    rows = [
        {
            "stage": entry["name"],
            "status": entry["status"],
            "seconds": entry["seconds"],
            "artifact": f"[{entry['id']}]({store.run_url(entry['id'])})",
        }
        for entry in document["stages"]
    ]
    create_table_artifact(rows, key="mlflow-runs", description=f"[Pipeline run]({store.run_url(document['run_id'])})")
