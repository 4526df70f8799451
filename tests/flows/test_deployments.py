"""deployments/ against a real Prefect server and worker, with the commands of docs/operations.md."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil
import pytest
import yaml
from mlflow import MlflowClient

from dpr_core.config.pipeline import PipelineConfig
from flows import wiring
from tasks.artifacts.store import Record, Store
from tasks.registry import STAGES
from tests.docs.test_docs import TINY, blocks

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deployments" / "prefect.yaml"
PATIENCE = 200.0

URL = "http://127.0.0.1:4200/api"
"""Of the server in the documentation."""

PAGE = ROOT / "docs" / "operations.md"
BLOCKS = [block for block in blocks(PAGE) if "prefect " in block.text and block.is_commands]
[SET_UP] = [
    block.text for block in blocks(PAGE) if "deployments/setup.py" in block.text and "PREFECT_API_URL" in block.text
]
[WORKERS] = [block.text for block in BLOCKS if "worker start" in block.text]
[FIRST] = [block.text for block in BLOCKS if block.text.startswith("prefect deployment run dense-path/run --watch")]
[EXAMPLES] = [block.text for block in BLOCKS if block.text.startswith("newest()")]
[REFUSED] = [block.text for block in BLOCKS if block.why_not_run == "needs a Prefect server, and fails"]

SHIM = f"""#!{sys.executable}
import json, sys
TINY = {TINY.split()!r}
words = sys.argv[1:]
if words[:2] == ["deployment", "run"]:
    whole = words[2] == "dense-path/run"
    of_demo = whole and not any(word.startswith("recipe=") for word in words) or "recipe=demo" in words
    stage = words[2].partition("/")[2]
    tiny = TINY if whole else [each.removeprefix(stage + ".") for each in TINY if each.startswith(stage + ".")]
    if of_demo and tiny:
        given = [i for i, word in enumerate(words) if word.startswith("overrides=")]
        mine = [each for i in given for each in json.loads(words[i].partition("=")[2])]
        for i in reversed(given):
            del words[i - 1 : i + 1]
        words += ["-p", "overrides=" + json.dumps(tiny + mine)]
elif words[:1] == ["config"]:
    words += [word for setting in TINY for word in ("--set", setting)]
"""
"""What the two programs of the documentation do first: they make the recipe `demo` small."""

PROGRAMS = {
    "prefect": f"{SHIM}sys.argv[1:] = words\nimport runpy\nrunpy.run_module('prefect', run_name='__main__')\n",
    "dpr": f"{SHIM}sys.argv[1:] = words\nfrom flows.cli.__main__ import main\nmain()\n",
    **dict.fromkeys(("python", "python3"), f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'),
}

Tiny = Callable[..., PipelineConfig]


class Site:
    """A Prefect server, a work pool, a worker, and a `DPR_HOME` of their own. Knows how to end all of it."""

    def __init__(self, folder: Path, environment: Callable[..., dict[str, str]]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder = folder
        self.home = folder / "home"
        self.environment = environment(
            self.home,
            PREFECT_HOME=str(folder / "prefect"),
            PREFECT_API_URL=f"http://127.0.0.1:{self.port}/api",
            PREFECT_SERVER_ANALYTICS_ENABLED="false",
            PREFECT_WORKER_QUERY_SECONDS="1",
            DO_NOT_TRACK="true",
            COLUMNS="1000",
        )
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name, text in PROGRAMS.items():
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)

    def documented(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a block of the documentation, with this server in place of the one there."""
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script.replace(URL, self.environment["PREFECT_API_URL"])],
            env={**self.environment, "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=15 * PATIENCE,
        )

    def start(self, *arguments: str, **environment: str) -> None:
        """Start a long-lived `prefect ...` in a session of its own."""
        with (self.folder / f"{arguments[0]}.log").open("ab") as log:
            subprocess.Popen(
                [sys.executable, "-m", "prefect", *arguments],
                env={**self.environment, **environment},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def prefect(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `prefect ...` from the repository's root."""
        return subprocess.run(
            [sys.executable, "-m", "prefect", *arguments],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def done(self, *arguments: str) -> str:
        """Run `prefect ...`, which must succeed."""
        result = self.prefect(*arguments)
        assert result.returncode == 0, f"{result.stdout}\n{result.stderr}\n{self.log('worker')}"
        return result.stdout

    def assert_refused(self, *arguments: str) -> str:
        """Run `prefect ...`, which must fail; what it says."""
        result = self.prefect(*arguments)
        assert result.returncode == 1, result.stdout
        assert "Traceback" not in result.stdout + result.stderr
        return " ".join((result.stdout + result.stderr).split())

    def api(self, path: str, **body: Any) -> Any:
        request = Request(f"{self.environment['PREFECT_API_URL']}/{path}")
        if body:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        with urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def wait_for_server(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.api("health")
                return
            except OSError:
                assert time.monotonic() < deadline, self.log("server")
                time.sleep(0.3)

    def wait_for(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, self.log("worker")
            time.sleep(0.3)

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace")[-5000:] if path.exists() else ""

    def processes(self) -> list[psutil.Process]:
        """Everything started from here: flow runs have sessions of their own, but all have this PREFECT_HOME."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("PREFECT_HOME") == self.environment["PREFECT_HOME"]:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
            processes = self.processes()
            for process in processes:
                try:
                    process.send_signal(number)
                except psutil.NoSuchProcess:
                    continue
            psutil.wait_procs(processes, timeout=15)


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, process_environment: Callable[..., dict[str, str]]
) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"), process_environment)
    try:
        site.start("server", "start", "--host", "127.0.0.1", "--port", str(site.port))
        site.wait_for_server()
        set_up = site.documented(SET_UP)
        assert set_up.returncode == 0, set_up.stdout + set_up.stderr
        for line in WORKERS.splitlines():
            *variables, _ = line.partition("prefect ")[0].split(" ")
            site.start(*line.partition("prefect ")[2].split(), **dict(each.split("=") for each in variables))
        yield site
    finally:
        site.end()
        assert site.processes() == []


@pytest.fixture(scope="module")
def pipeline(site: Site, tiny: Tiny) -> dict[str, str]:
    """The tiny pipeline, run by its deployment in one process: the artifacts by the names of their stages."""
    recipe = tiny().model_dump_json()
    here = 'place={"*": "here"}'
    site.done("deployment", "run", "dense-path/run", "-p", f"recipe={recipe}", "-p", here, "--watch")
    [table] = site.api("artifacts/filter", artifacts={"key": {"any_": ["mlflow-runs"]}})
    rows = json.loads(table["data"])
    return {row["stage"]: row["artifact"].partition("]")[0].removeprefix("[") for row in rows}


@pytest.mark.slow
def test_every_flow_is_deployed_and_shows_its_settings_in_its_form(site: Site) -> None:
    flows = {flow["id"]: flow["name"] for flow in site.api("flows/filter", limit=200)}
    deployed = {f"{flows[d['flow_id']]}/{d['name']}": d for d in site.api("deployments/filter", limit=200)}
    assert set(deployed) == {
        "dense-path/run",
        "rerun/rerun",
        "sweep/sweep",
        *(f"placed/{pool}" for pool in ("cpu", "gpu", "gpu8")),
        *(f"stage/{stage}" for stage in STAGES),
    }
    for name, deployment in deployed.items():
        assert deployment["pull_steps"] in (None, []), name
        assert deployment["enforce_parameter_schema"], name
        assert deployment["description"], name
        assert "dense-path" in deployment["tags"], name
        assert deployment["job_variables"] == {
            "working_dir": str(ROOT),
            "env": {
                "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
                "PREFECT_CLIENT_MAX_RETRIES": "7",
                "PREFECT_LOGGING_EXTRA_LOGGERS": "dense_path",
            },
        }
        for field in deployment["parameter_openapi_schema"]["properties"].values():
            assert field["description"], name
    where = {name: (each["work_pool_name"], each["work_queue_name"]) for name, each in deployed.items()}
    assert where["stage/reinforce"] == ("gpu", "urgent")
    assert where["stage/judge"] == ("cpu", "urgent")
    assert where["dense-path/run"] == ("cpu", "controllers")
    assert where["placed/gpu8"] == ("gpu8", "default")


@pytest.mark.slow
def test_the_pipeline_makes_what_the_command_line_makes(
    site: Site, pipeline: dict[str, str], made: Any, tiny: Tiny, open_store: Callable[[Path], Store]
) -> None:
    assert list(pipeline) == [node.name for node in wiring.nodes(tiny())]
    deployed, local = open_store(site.home), open_store(made.home)
    for name, artifact in pipeline.items():
        assert deployed.verify(artifact) == []
        assert deployed.record(artifact).digest == local.record(made.id(name)).digest, name


@pytest.mark.slow
def test_the_flow_run_shows_links_to_its_mlflow_runs_and_why_each_stage_ran(
    site: Site, pipeline: dict[str, str], open_store: Callable[[Path], Store]
) -> None:
    store = open_store(site.home)
    [table] = site.api("artifacts/filter", artifacts={"key": {"any_": ["mlflow-runs"]}})
    flow_run = site.api(f"flow_runs/{table['flow_run_id']}")
    assert (flow_run["name"], flow_run["state_type"]) == ("tiny", "COMPLETED")
    links = [row["artifact"] for row in json.loads(table["data"])]
    assert links == [f"[{artifact}]({store.run_url(artifact)})" for artifact in pipeline.values()]
    parent = store.record(pipeline["report"]).parent
    assert parent is not None
    assert store.run_url(parent) in table["description"]
    logs = site.api("logs/filter", logs={"flow_run_id": {"any_": [flow_run["id"]]}}, limit=200)
    assert "sft: runs, because: never ran" in [entry["message"] for entry in logs]


@pytest.mark.slow
def test_the_examples_of_the_documentation_run(site: Site, open_store: Callable[[Path], Store]) -> None:
    done = site.documented(f"{FIRST}\n{EXAMPLES}")
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}\n{site.log('worker')}"
    store = open_store(site.home)
    of_recipe, alike, again, _, first = made = store.records("reinforce")[:5]
    assert [record.config["algorithm"]["gamma"] for record in made] == [1.0, 0.95, 0.9, 1.0, 1.0]
    assert [record.config["seed"] for record in made] == [2, 1, 1, 1, 0]
    assert {record.inputs["reward"] for record in made} == {first.inputs["reward"]}
    assert again.id in {record.inputs["policy"] for record in store.records("answer")}
    assert alike.id not in {record.inputs["policy"] for record in store.records("answer")}
    [verdict] = [each for each in store.records("judge") if each.inputs["candidate"] == store.records("answer")[0].id]
    assert store.record(verdict.inputs["candidate"]).inputs == {"policy": of_recipe.id}
    runs = site.api("flow_runs/filter", limit=200)
    placed = {run["name"] for run in runs if run["deployment_id"] and "placed" in run["tags"]}
    assert {"sft", "reward", "reinforce"} <= placed
    assert "report" not in placed


@pytest.mark.slow
def test_what_cannot_fit_is_refused_as_documented(site: Site, pipeline: dict[str, str]) -> None:
    newest = EXAMPLES.splitlines()[0]
    done = site.documented(f"{newest}\n{REFUSED}")
    assert done.returncode == 1, done.stdout + done.stderr
    failed = site.api("flow_runs/filter", flow_runs={"state": {"type": {"any_": ["FAILED"]}}}, sort="END_TIME_DESC")
    sentence = failed[0]["state"]["message"].partition("UsageError: ")[2]
    assert f"```text\n{sentence}\n```" in PAGE.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dense-path/run", "-p", "place=cpu"], "'cpu' is not of type 'object'"),
        (["stage/reinforce", "-p", "reward=12345678"], "12345678 is not"),
        (["stage/reinforce", "-p", "like=1f", "-p", 'overrides="seed=1"'], "'seed=1' is not"),
        (
            ["stage/reinforce", "-p", "rewards=1f"],
            "The following parameters are available on the deployment: 'reward'",
        ),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(site: Site, arguments: list[str], words: str) -> None:
    before = site.api("flow_runs/count", flow_runs={})
    assert words in site.assert_refused("deployment", "run", *arguments)
    assert site.api("flow_runs/count", flow_runs={}) == before


@pytest.mark.slow
def test_settings_that_do_not_fit_each_other_fail_the_run_at_its_start(site: Site) -> None:
    overrides = 'overrides=["reward.reference=0.33"]'
    said = site.assert_refused("deployment", "run", "dense-path/run", "-p", overrides, "--watch")
    assert "Flow run finished in state 'Failed'" in said
    failed = site.api("flow_runs/filter", flow_runs={"state": {"type": {"any_": ["FAILED"]}}}, sort="END_TIME_DESC")
    assert "reward.reference is 0.33, but sft.checkpoints keeps only" in failed[0]["state"]["message"]


@pytest.mark.slow
def test_the_automation_for_lost_runs_is_accepted(site: Site) -> None:
    automations = {each["name"]: each for each in site.api("automations/filter", limit=200)}
    heartbeat = int(yaml.safe_load(FILE.read_text())["definitions"]["job"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
    assert automations["crash-zombies"]["trigger"]["within"] >= 3 * heartbeat


ENDLESS = [
    "width=32",
    "layers=1",
    "heads=2",
    "feed_forward=32",
    "task.operations=3",
    "teach_max_steps=1000000",
    "probe_every=1000000",
]
"""A backbone that is taught until it is stopped."""


@pytest.mark.slow
def test_a_cancelled_stage_keeps_its_state_and_the_next_run_goes_on_from_it(
    site: Site, open_store: Callable[[Path], Store]
) -> None:
    store = open_store(site.home)

    def attempt() -> Record | None:
        return next((record for record in store.records("backbone") if record.config["probe_every"] == 1_000_000), None)

    def steps() -> list[int]:
        if (record := attempt()) is None:
            return []
        history = MlflowClient(store._client.uri).get_metric_history(record.id, "train/loss")
        return [metric.step for metric in history]

    def cancelled_in_the_middle() -> tuple[str, Record]:
        """Start the stage, cancel it some steps later; the flow run and the attempt."""
        before = len(steps())
        parameters = ("-p", f"overrides={json.dumps(ENDLESS)}", "--flow-run-name", f"endless from {before}")
        site.done("deployment", "run", "stage/backbone", *parameters)
        site.wait_for(lambda: len(steps()) > before + 20)
        [flow_run] = site.api("flow_runs/filter", flow_runs={"name": {"any_": [f"endless from {before}"]}})
        site.done("flow-run", "cancel", flow_run["id"])
        # The process that ends says that it crashed, before its worker, which knows better, has the last word.
        site.wait_for(lambda: site.api(f"flow_runs/{flow_run['id']}")["state_type"] == "CANCELLED")
        site.wait_for(lambda: (found := attempt()) and found.status != "RUNNING")
        record = attempt()
        assert record is not None
        return flow_run["id"], record

    first_run, first = cancelled_in_the_middle()
    assert first.status == "KILLED"
    taught = steps()
    states = store.home / "work" / first.key / "states"
    assert [int(folder.name) for folder in states.iterdir()] == [taught[-1]]
    _, second = cancelled_in_the_middle()
    assert (second.id, second.status) == (first.id, "KILLED")
    assert steps()[: len(taught)] == taught
    assert steps() == list(range(1, len(steps()) + 1)), "no step was done twice"
    assert site.api(f"flow_runs/{first_run}")["state_type"] == "CANCELLED"


@pytest.mark.slow
def test_a_flow_run_is_cancelled_though_the_server_was_away_for_two_minutes(
    site: Site, open_store: Callable[[Path], Store]
) -> None:
    """Its worker no longer hears of it."""
    store = open_store(site.home)
    overrides = json.dumps([*ENDLESS, "seed=3"])
    parameters = ("-p", f"overrides={overrides}", "--flow-run-name", "through a restart")
    site.done("deployment", "run", "stage/backbone", *parameters)

    def attempt() -> Record | None:
        return next((record for record in store.records("backbone") if record.config["seed"] == 3), None)

    site.wait_for(attempt)
    for process in site.processes():
        with suppress(psutil.NoSuchProcess):
            if "server" in (words := process.cmdline()) or "prefect.server.api.server:create_app" in words:
                process.kill()
    time.sleep(120)
    site.start("server", "start", "--host", "127.0.0.1", "--port", str(site.port))
    site.wait_for_server()
    [flow_run] = site.api("flow_runs/filter", flow_runs={"name": {"any_": ["through a restart"]}})
    assert attempt().status == "RUNNING"  # type: ignore[union-attr]
    # For want of heartbeats the server may take it for crashed, until its process says that it lives.
    site.wait_for(lambda: site.prefect("flow-run", "cancel", flow_run["id"]).returncode == 0)
    site.wait_for(lambda: attempt().status != "RUNNING")  # type: ignore[union-attr]
    record = attempt()
    assert record is not None
    assert record.status == "KILLED"
    assert list((store.home / "work" / record.key / "states").iterdir())
    site.wait_for(lambda: site.api(f"flow_runs/{flow_run['id']}")["state_type"] == "CANCELLED")


def test_no_deployment_names_a_gpu() -> None:
    settings = [line for line in FILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    assert not any("CUDA_VISIBLE_DEVICES" in line for line in settings)
