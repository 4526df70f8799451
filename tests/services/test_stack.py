"""The whole topology as processes: the demo over two pools, a worker killed, servers and pools that come and go.

One stack for all; the recipe is the demo, made small. What depends on REINFORCE alone is made anew by later tests.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from deployments.servers import running
from deployments.stack import ROOT, Stack
from flows import recipes
from tasks.artifacts.store import Record, Store
from tests.docs.test_docs import TINY
from tests.services.conftest import folder_for_postgresql

pytestmark = [pytest.mark.services]

ITERATIONS = "reinforce.iterations="
SMALL = [setting if not setting.startswith(ITERATIONS) else f"{ITERATIONS}40" for setting in TINY.split()]
"""REINFORCE lasts long enough to be met in it."""

PATIENCE = 300.0

Run = subprocess.Popen[str]


class Site:
    """The stack, as an operator and as users on machines of their own see it."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.store = Store.open()
        self.api = stack.api

    def dpr(self, *words: str, machine: str) -> Run:
        """A command on a machine, just started."""
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *words],
            env=environment(**self.stack.environment(machine)),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def deployed(self, deployment: str, /, **parameters: object) -> dict[str, Any]:
        """The flow run of a deployment, once it has ended."""
        known = self.api(f"deployments/name/{deployment}")["id"]
        flow_run = self.api(f"deployments/{known}/create_flow_run", {"parameters": parameters})["id"]
        return self.ended(flow_run)

    def ended(self, flow_run: str) -> dict[str, Any]:
        def read() -> dict[str, Any] | None:
            found: dict[str, Any] = self.api(f"flow_runs/{flow_run}")
            return found if found["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

        found: dict[str, Any] = until(read)
        return found

    def placed(self) -> list[dict[str, Any]]:
        """Flow runs of stages on pools, oldest first."""
        of_stages = {"flows": {"name": {"any_": ["placed"]}}, "sort": "START_TIME_ASC"}
        found: list[dict[str, Any]] = self.api("flow_runs/filter", of_stages)
        return found

    def finished(self, name: str) -> list[Record]:
        return [record for record in self.store.records(name=name) if record.finished]

    def in_reinforce(self, seed: int) -> Record | None:
        """The run of REINFORCE that is amid its iterations."""
        for record in self.store.records("reinforce"):
            if record.status == "RUNNING" and record.config["seed"] == seed:
                return record if self.store._client.get_metric_history(record.id, "rollout/return") else None
        return None


def environment(**settings: str) -> dict[str, str]:
    """Of a process that knows no servers but those named."""
    prefixes = ("DPR_", "PREFECT_", "MLFLOW_", "AWS_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    return {**kept, "OMP_NUM_THREADS": "1", **settings}


def until(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.3)
    return found


def small(*changes: str) -> list[str]:
    return ["demo", *(word for change in [*SMALL, *changes] for word in ("--set", change))]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """Digests by the names of stages, where one process did everything and nothing else was there."""
    home = tmp_path_factory.mktemp("embedded") / "home"
    command = [sys.executable, "-m", "flows.cli", "run", *small(), "--json"]
    alone = environment(DPR_HOME=str(home))
    done = subprocess.run(command, env=alone, cwd=ROOT, check=True, capture_output=True, text=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPR_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        store = Store.open()
        return {entry["name"]: store.record(entry["id"]).digest for entry in json.loads(done.stdout)["stages"]}


@pytest.fixture(scope="module")
def site(embedded: dict[str, str | None]) -> Iterator[Site]:
    pytest.importorskip("moto", reason="there is no moto: pip install 'moto[s3]'")
    with folder_for_postgresql() as folder, pytest.MonkeyPatch.context() as patch:
        stack = Stack(folder / "stack")
        try:
            stack.start()
            for name, value in stack.environment("reader").items():
                patch.setenv(name, value)
            yield Site(stack)
        finally:
            stack.stop()


@contextmanager
def prompt_crashes(site: Site) -> Iterator[None]:
    """A flow run is taken for crashed as soon as one heartbeat is late. One that lives after all says so itself; a
    stage that was asked for again meanwhile is found."""
    [automation] = [each for each in site.api("automations/filter", {}) if each["name"] == "crash-zombies"]
    asked = {key: automation[key] for key in ("name", "description", "enabled", "trigger", "actions")}
    prompt = {**asked, "trigger": {**asked["trigger"], "within": 40}}
    site.api(f"automations/{automation['id']}", prompt, "PUT")
    try:
        yield
    finally:
        site.api(f"automations/{automation['id']}", asked, "PUT")


def worker_of(flow_run: dict[str, Any]) -> str:
    name: str = flow_run["labels"]["prefect.worker.name"]
    return name


def test_the_demo_goes_through_though_a_worker_is_killed_in_reinforce(
    site: Site, embedded: dict[str, str | None]
) -> None:
    place = {"sft,reward,reinforce,answer": "gpu", "*": "cpu"}
    parameters = {"recipe": "demo", "overrides": SMALL, "place": place}
    words = [word for name, value in parameters.items() for word in ("-p", f"{name}={json.dumps(value)}")]
    run = [sys.executable, "-m", "prefect", "deployment", "run", "dense-path/run", *words]
    settings = environment(**site.stack.environment("shell"), COLUMNS="1000")
    with prompt_crashes(site):
        said = subprocess.run(run, env=settings, check=True, capture_output=True, text=True).stdout
        [flow_run] = re.findall(r"UUID: ([0-9a-f-]{36})", said)
        killed = until(lambda: site.in_reinforce(0))
        site.stack.servers["worker-gpu"].send(signal.SIGKILL)
        with running(site.stack.worker("spare", "gpu")):
            controller = site.ended(flow_run)
    assert controller["state_type"] == "COMPLETED", controller["state"]["message"]

    placed = site.placed()
    for each in [controller, *placed]:
        print(f"{each['name']:<28} {each['state']['name']:<10} by {worker_of(each):<6} {each['state']['message']}")
    did = [(each["name"], each["state"]["name"], worker_of(each)) for each in placed]
    assert ("reinforce", "Crashed", "gpu") in did
    assert ("reinforce", "Ran", "spare") in did
    by = {each["name"]: worker_of(each) for each in placed if each["state"]["name"] == "Ran"}
    assert by.keys() == {name for name in embedded if name.split()[0] in ("sft", "reward", "reinforce", "answer")}
    assert worker_of(controller) == "cpu"

    made = {name: site.finished(name) for name in embedded}
    digests = {name: [record.digest for record in records] for name, records in made.items()}
    assert digests == {name: [digest] for name, digest in embedded.items()}, "nothing else, and nothing twice"
    assert site.store.record(killed.id).finished, "in the run that the killed one had begun"
    for name, [record] in made.items():
        home = site.stack.folder / "homes" / f"worker-{by.get(name, 'cpu')}"
        assert record.owner == (home / "ID").read_text(), name


def test_a_pool_without_workers_two_controllers_and_a_server_that_is_restarted(site: Site) -> None:
    """Each stage is made once."""
    words = ["run", *small("reinforce.seed=7"), "--json", "--place", "*=gpu8"]
    commands = [site.dpr(*words, machine=machine) for machine in ("one", "another")]
    until(lambda: any(run["name"] == "reinforce" and run["state_type"] == "SCHEDULED" for run in site.placed()))
    server = site.stack.servers["prefect"]
    with running(site.stack.worker("large", "gpu8")):
        until(lambda: any(record.config["seed"] == 7 for record in site.store.records("reinforce")))
        server.stop(signal.SIGKILL)
        time.sleep(3)
        server.start()
        ended = [(*command.communicate(timeout=PATIENCE), command.returncode) for command in commands]
    for _, said, status in ended:
        assert status == 0, said
        assert "the work pool gpu8 has no worker" in said
    one, another = (
        {entry["name"]: entry["id"] for entry in json.loads(document)["stages"]} for document, _, _ in ended
    )
    assert one == another
    for name, artifact in one.items():
        record = site.store.record(artifact)
        assert [each.id for each in site.finished(name) if each.key == record.key] == [artifact], name
    assert site.store.record(one["reinforce"]).config["seed"] == 7


def test_a_sweep_on_a_pool_with_one_slot_ends(site: Site) -> None:
    before = len(site.placed())
    study = {
        "title": "Intervals",
        "config": recipes.load("demo", SMALL).model_dump(mode="json"),
        "over": {"judge.bootstrap_samples": [100, 101]},
    }
    site.api("work_pools/cpu", {"concurrency_limit": 1}, "PATCH")
    ended = site.deployed("sweep/sweep", studies=[study], name="intervals", place={"*": "cpu"})
    site.api("work_pools/cpu", {"concurrency_limit": None}, "PATCH")
    assert ended["state_type"] == "COMPLETED", ended["state"]["message"]
    assert len(site.placed()) == before, "it has the slot, and does the stages itself"
    assert len(site.store.records("experiment")) == 1


def failure(command: Run, status: int) -> str:
    _, said = command.communicate(timeout=PATIENCE)
    assert command.returncode == status, said
    assert "Traceback" not in said
    return " ".join(said[said.rindex("error: ") :].split())


def test_a_stage_that_needs_more_gpus_than_its_worker_has_says_so(site: Site) -> None:
    start = [sys.executable, "-m", "deployments.stack", "start", "--folder", str(site.stack.folder)]
    said = subprocess.run(start, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "does not run" not in said, "the worker that was killed, too"
    settings = small("reinforce.seed=9", "reinforce.execution.device=cuda", "reinforce.execution.launch.processes=8")
    said = failure(site.dpr("run", *settings, "--place", "reinforce=gpu", machine="one"), 2)
    assert "GPU" in said
    assert "place reinforce on another pool" in said
    assert [record for record in site.store.records("reinforce") if record.config["seed"] == 9] == []


def test_a_worker_with_another_store_is_named(site: Site) -> None:
    with running(site.stack.worker("stray", "gpu8", MLFLOW_TRACKING_URI="")):
        said = failure(site.dpr("run", *small("subsample.seed=9"), "--place", "subsample=gpu8", machine="one"), 1)
    assert "workers need the same MLflow as this (MLFLOW_TRACKING_URI)" in said


def test_without_a_container_engine_a_sentence_says_what_to_do() -> None:
    done = subprocess.run(["make", "up", "COMPOSE=false"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "`make stack` runs the same as processes" in done.stderr
