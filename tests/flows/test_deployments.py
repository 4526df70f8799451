"""deployments/ against a real Prefect server and worker, with the commands of docs/operations.md."""

import json
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

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deployments" / "prefect.yaml"
PATIENCE = 200.0

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

    def start(self, *arguments: str) -> None:
        """Start a long-lived `prefect ...` in a session of its own."""
        with (self.folder / f"{arguments[0]}.log").open("wb") as log:
            subprocess.Popen(
                [sys.executable, "-m", "prefect", *arguments],
                env=self.environment,
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
        site.done("work-pool", "create", "gpu", "--type", "process")
        site.done("--no-prompt", "deploy", "--all", "--prefect-file", str(FILE.relative_to(ROOT)))
        site.start("worker", "start", "--pool", "gpu", "--limit", "1", "--name", "only")
        yield site
    finally:
        site.end()
        assert site.processes() == []


@pytest.fixture(scope="module")
def pipeline(site: Site, tiny: Tiny) -> dict[str, str]:
    """The tiny pipeline, run by its deployment: the artifacts by the names of their stages."""
    config = tiny().model_dump_json()
    site.done("deployment", "run", "dense-path/demo", "-p", f"config={config}", "--watch")
    [table] = site.api("artifacts/filter", artifacts={"key": {"any_": ["mlflow-runs"]}})
    rows = json.loads(table["data"])
    return {row["stage"]: row["artifact"].partition("]")[0].removeprefix("[") for row in rows}


@pytest.mark.slow
def test_every_flow_is_deployed_and_shows_its_settings_in_its_form(site: Site) -> None:
    flows = {flow["id"]: flow["name"] for flow in site.api("flows/filter", limit=200)}
    deployed = {f"{flows[d['flow_id']]}/{d['name']}": d for d in site.api("deployments/filter", limit=200)}
    assert set(deployed) == {
        "dense-path/demo",
        "rerun/rerun",
        "sweep/sweep",
        *(f"{stage.replace('_', '-')}/stage" for stage in STAGES),
    }
    for name, deployment in deployed.items():
        assert deployment["pull_steps"] in (None, []), name
        assert deployment["enforce_parameter_schema"], name
        assert deployment["job_variables"] == {
            "working_dir": str(ROOT),
            "env": {
                "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
                "PREFECT_CLIENT_MAX_RETRIES": "7",
                "PREFECT_LOGGING_EXTRA_LOGGERS": "dense_path",
            },
        }
    settings = deployed["reinforce/stage"]["parameter_openapi_schema"]
    assert settings["required"] == ["reward"]
    assert "learning_rate" in settings["definitions"]["ReinforceConfig"]["properties"]
    settings = deployed["self-play/stage"]["parameter_openapi_schema"]
    assert settings["required"] == ["sft"]
    assert {"rounds", "method"} <= settings["definitions"]["SelfPlayConfig"]["properties"].keys()


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
def test_a_stage_and_a_rerun_take_artifact_ids(
    site: Site, pipeline: dict[str, str], open_store: Callable[[Path], Store], tiny: Tiny
) -> None:
    config = tiny("reinforce.seed=5").reinforce.model_dump_json()
    prefix = f"runs:/{pipeline['reward'][:8]}"
    site.done("deployment", "run", "reinforce/stage", "-p", f"reward={prefix}", "-p", f"config={config}", "--watch")
    parameters = ("-p", f"artifact={pipeline['reinforce']}", "-p", 'overrides=["seed=5"]', "-p", "downstream=true")
    site.done("deployment", "run", "rerun/rerun", *parameters, "--watch")
    store = open_store(site.home)
    [alone] = [record for record in store.records("reinforce") if record.id != pipeline["reinforce"]]
    assert (alone.inputs, alone.config["seed"]) == ({"reward": pipeline["reward"]}, 5)
    [answers] = [record for record in store.records("answer") if record.inputs["policy"] == alone.id]
    [verdict] = [record for record in store.records("judge") if record.inputs["candidate"] == answers.id]
    assert verdict.inputs["baseline"] == pipeline["answer SFT on lab"]
    [report] = [record for record in store.records("report") if verdict.id in record.inputs.values()]
    assert report.finished


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["dense-path/demo", "-p", 'config={"backbone": {"type": "lab"}, "reinforce": {"learning_rat": 1}}'],
            "'config.reinforce'. Failure reason: Additional properties are not allowed ('learning_rat' was unexpected)",
        ),
        (["reinforce/stage", "-p", "reward=1f", "-p", 'config={"seed": "x"}'], "'x' is not of type 'integer'"),
        (["reinforce/stage"], "'reward' is a required property"),
        (["reinforce/stage", "-p", "rewards=1f"], "The following parameters are available on the deployment: 'reward'"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(site: Site, arguments: list[str], words: str) -> None:
    before = site.api("flow_runs/count", flow_runs={})
    assert words in site.assert_refused("deployment", "run", *arguments)
    assert site.api("flow_runs/count", flow_runs={}) == before


@pytest.mark.slow
def test_settings_that_do_not_fit_each_other_fail_the_run_at_its_start(site: Site, pipeline: dict[str, str]) -> None:
    config = '{"backbone": {"type": "lab"}, "reward": {"reference": 0.3}}'
    said = site.assert_refused("deployment", "run", "dense-path/demo", "-p", f"config={config}", "--watch")
    assert "Flow run finished in state 'Failed'" in said
    [failed] = site.api("flow_runs/filter", flow_runs={"state": {"type": {"any_": ["FAILED"]}}})
    assert "reward.reference is 0.3, but sft.checkpoints keeps only 0.5, 1" in failed["state"]["message"]


@pytest.mark.slow
def test_the_automation_for_lost_runs_is_accepted(site: Site) -> None:
    site.done("automation", "create", "--from-file", "deployments/zombies.yaml")
    [automation] = site.api("automations/filter", limit=200)
    heartbeat = int(
        yaml.safe_load(FILE.read_text())["definitions"]["gpu"]["job_variables"]["env"][
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
        ]
    )
    assert automation["trigger"]["within"] >= 3 * heartbeat


ENDLESS = {
    "width": 32,
    "layers": 1,
    "heads": 2,
    "feed_forward": 32,
    "task": {"type": "additions", "operations": 3},
    "teach_max_steps": 1_000_000,
    "probe_every": 1_000_000,
}
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
        parameters = ("-p", f"config={json.dumps(ENDLESS)}", "--flow-run-name", f"endless from {before}")
        site.done("deployment", "run", "backbone/stage", *parameters)
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
    config = json.dumps(ENDLESS | {"seed": 3})
    site.done("deployment", "run", "backbone/stage", "-p", f"config={config}", "--flow-run-name", "through a restart")

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
