"""deployments/ against a real Prefect server and worker, with the commands of docs/operations.md."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from mlflow import MlflowClient

from deployments.servers import Server, answering, free_port
from flows import recipes, wiring
from tasks.artifacts.store import Record, Store
from tasks.registry import STAGES
from tests.docs.test_docs import blocks

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deployments" / "prefect.yaml"
TINY = Path(__file__).with_name("tiny.yaml")
PATIENCE = 300.0

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
import sys
small = {{"demo": {str(TINY)!r}, "recipe=demo": "recipe=" + {str(TINY)!r}}}
words = [small.get(word, word) for word in sys.argv[1:]]
if words == ["deployment", "run", "dense-path/run", "--watch"]:
    words += ["-p", small["recipe=demo"], "-p", 'place={{"reinforce": "gpu", "*": "here"}}']
elif words[:3] in (["deployment", "run", "dense-path/run"], ["deployment", "run", "rerun/rerun"]):
    words += ["-p", 'place={{"*": "here"}}']
sys.argv[1:] = words
"""
"""What the two programs of the documentation do first: the recipe `demo` is a small one, and only the first REINFORCE
is done by another worker than its pipeline, since every process takes seconds to start."""

PROGRAMS = {
    "prefect": f"{SHIM}import runpy\nrunpy.run_module('prefect', run_name='__main__')\n",
    "dpr": f"{SHIM}from flows.cli.__main__ import main\nmain()\n",
    **dict.fromkeys(("python", "python3"), f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'),
}


class Site:
    """A Prefect server, its work pools, and workers with a `DPR_HOME` of their own. Knows how to end all of it."""

    def __init__(self, folder: Path, environment: Callable[..., dict[str, str]]) -> None:
        port = str(free_port())
        self.url = f"http://127.0.0.1:{port}/api"
        self.folder = folder
        self.home = folder / "home"
        self.environment = environment(
            self.home,
            PREFECT_HOME=str(folder / "prefect"),
            PREFECT_API_URL=self.url,
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
        self.server = self._prefect("server", ["server", "start", "--host", "127.0.0.1", "--port", port])
        self.workers = {}
        for line in WORKERS.splitlines():
            variables, _, words = line.partition("prefect ")
            name = words.partition("--pool ")[2].split()[0]
            given = dict(each.split("=") for each in variables.split())
            self.workers[name] = self._prefect(name, words.split(), **given)

    def _prefect(self, name: str, words: list[str], **environment: str) -> Server:
        """A long-lived `prefect ...`."""
        ready = answering(f"{self.url}/health")
        command = [sys.executable, "-m", "prefect", *words]
        return Server(command, self.folder / f"{name}.log", ready, environment={**self.environment, **environment})

    def documented(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a block of the documentation, with this server in place of the one there."""
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script.replace(URL, self.url)],
            env={**self.environment, "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=10 * PATIENCE,
        )

    def done(self, script: str) -> str:
        """The same, which must succeed; what it says."""
        result = self.documented(script)
        assert result.returncode == 0, f"{result.stdout[-4000:]}\n{result.stderr[-4000:]}\n{self.logs()}"
        return result.stdout

    def api(self, path: str, **body: Any) -> Any:
        method = "POST" if body else "GET"
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = httpx.request(method, f"{self.url}/{path}", json=body or None, timeout=60, trust_env=False)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                answer.raise_for_status()
                return answer.json()
            time.sleep(1)  # its database is locked for the moment

    def deploy(self, name: str, **parameters: Any) -> str:
        """The ID of a new flow run of a deployment."""
        deployment = self.api(f"deployments/name/{name}")["id"]
        return str(self.api(f"deployments/{deployment}/create_flow_run", parameters=parameters)["id"])

    def state(self, flow_run: str) -> str:
        return str(self.api(f"flow_runs/{flow_run}")["state_type"])

    def wait_for(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.3)

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(self.folder.glob("*.log")))

    def end(self) -> None:
        for server in (*self.workers.values(), self.server):
            server.stop()


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, process_environment: Callable[..., dict[str, str]]
) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"), process_environment)
    try:
        site.server.start()
        site.done(SET_UP)
        for worker in site.workers.values():
            worker.begin()
        yield site
    finally:
        site.end()


@pytest.fixture(scope="module")
def pipeline(site: Site) -> dict[str, str]:
    """The first run of the documentation: the artifacts by the names of their stages."""
    site.done(FIRST)
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
    place = deployed["dense-path/run"]["parameters"]["place"]
    assert (place["*"], place["judge"]) == ("gpu", "here")
    where = {name: (each["work_pool_name"], each["work_queue_name"]) for name, each in deployed.items()}
    assert where["stage/reinforce"] == ("gpu", "urgent")
    assert where["stage/judge"] == ("cpu", "urgent")
    assert where["dense-path/run"] == ("cpu", "controllers")
    assert where["placed/gpu8"] == ("gpu8", "default")


@pytest.mark.slow
def test_the_pipeline_makes_what_its_stages_make_without_prefect(
    site: Site, pipeline: dict[str, str], run_graph: Any, open_store: Callable[[Path], Store], tmp_path: Path
) -> None:
    nodes = wiring.nodes(recipes.load(str(TINY)))
    assert list(pipeline) == [node.name for node in nodes]
    deployed, local = open_store(site.home), open_store(tmp_path / "home")
    alone = run_graph(local, nodes)
    for name, artifact in pipeline.items():
        assert deployed.verify(artifact) == []
        assert deployed.record(artifact).digest == local.record(alone[name].id).digest, name


@pytest.mark.slow
def test_the_flow_run_shows_links_to_its_mlflow_runs_and_why_each_stage_ran(
    site: Site, pipeline: dict[str, str], open_store: Callable[[Path], Store]
) -> None:
    store = open_store(site.home)
    [table] = site.api("artifacts/filter", artifacts={"key": {"any_": ["mlflow-runs"]}})
    flow_run = site.api(f"flow_runs/{table['flow_run_id']}")
    assert (flow_run["name"], flow_run["state_type"]) == ("tiny", "COMPLETED")
    assert {"recipe:tiny", "seed:0"} <= set(flow_run["tags"])
    links = [row["artifact"] for row in json.loads(table["data"])]
    assert links == [f"[{artifact}]({store.run_url(artifact)})" for artifact in pipeline.values()]
    parent = store.record(pipeline["report"]).parent
    assert parent is not None
    assert store.run_url(parent) in table["description"]
    tasks = site.api("task_runs/filter", flow_runs={"id": {"any_": [flow_run["id"]]}}, limit=200)
    ended = {task["name"]: (task["state"]["name"], task["state"]["message"]) for task in tasks}
    assert ended.keys() == pipeline.keys()
    assert {how for how, _ in ended.values()} == {"Ran"}
    assert "made in" in ended["sft"][1]
    assert ended["sft"][1].endswith("because: never ran")
    [placed] = site.api("flow_runs/filter", flow_runs={"tags": {"all_": ["placed"]}})
    assert (placed["name"], placed["state"]["name"]) == ("reinforce", "Ran")
    for run, line in ((flow_run, "sft ran in"), (placed, "reinforce: runs, because: never ran")):
        logs = site.api("logs/filter", logs={"flow_run_id": {"any_": [run["id"]]}}, limit=200)
        assert any(line in entry["message"] for entry in logs), logs


@pytest.mark.slow
def test_the_examples_of_the_documentation_run(
    site: Site, pipeline: dict[str, str], open_store: Callable[[Path], Store]
) -> None:
    site.done(EXAMPLES)
    store = open_store(site.home)
    of_recipe, alike, again, _, first = made = store.records("reinforce")
    assert first.id == pipeline["reinforce"]
    assert [record.config["algorithm"]["gamma"] for record in made] == [1.0, 0.95, 0.9, 1.0, 1.0]
    assert [record.config["seed"] for record in made] == [2, 1, 1, 1, 0]
    assert {record.inputs["reward"] for record in made} == {first.inputs["reward"]}
    assert again.id in {record.inputs["policy"] for record in store.records("answer")}
    assert alike.id not in {record.inputs["policy"] for record in store.records("answer")}
    [verdict] = [each for each in store.records("judge") if each.inputs["candidate"] == store.records("answer")[0].id]
    assert store.record(verdict.inputs["candidate"]).inputs == {"policy": of_recipe.id}


@pytest.mark.slow
def test_what_cannot_fit_is_refused_as_documented(site: Site, pipeline: dict[str, str]) -> None:
    newest = EXAMPLES.splitlines()[0]
    done = site.documented(f"{newest}\n{REFUSED}")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    failed = site.api("flow_runs/filter", flow_runs={"state": {"type": {"any_": ["FAILED"]}}}, sort="END_TIME_DESC")
    sentence = failed[0]["state"]["message"].partition("UsageError: ")[2]
    assert f"```text\n{sentence}\n```" in PAGE.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("dense-path/run", {"place": "cpu"}, "'cpu' is not of type 'object'"),
        ("stage/reinforce", {"reward": 12345678}, "12345678 is not"),
        ("stage/reinforce", {"like": "1f", "overrides": "seed=1"}, "'seed=1' is not"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(
    site: Site, name: str, parameters: dict[str, Any], words: str
) -> None:
    before = site.api("flow_runs/count", flow_runs={})
    with pytest.raises(httpx.HTTPStatusError) as refused:
        site.deploy(name, **parameters)
    assert words in refused.value.response.json()["detail"]
    assert site.api("flow_runs/count", flow_runs={}) == before


@pytest.mark.slow
def test_a_parameter_that_there_is_not_is_refused_by_prefects_command(site: Site) -> None:
    done = site.documented("prefect deployment run stage/reinforce -p rewards=1f")
    assert done.returncode == 1
    said = " ".join((done.stdout + done.stderr).split())
    assert "The following parameters are available on the deployment: 'reward'" in said


@pytest.mark.slow
def test_settings_that_do_not_fit_each_other_fail_the_run_at_its_start(site: Site) -> None:
    flow_run = site.deploy("dense-path/run", overrides=["reward.reference=0.33"])
    site.wait_for(lambda: site.state(flow_run) == "FAILED")
    said = site.api(f"flow_runs/{flow_run}")["state"]["message"]
    assert "reward.reference is 0.33, but sft.checkpoints keeps only" in said


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
def test_a_cancelled_stage_keeps_its_state_and_goes_on_and_ends_too_where_no_worker_tells_it(
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

    def begun() -> str:
        """A flow run of the stage that is some steps further."""
        before = len(steps())
        flow_run = site.deploy("stage/backbone", overrides=ENDLESS)
        site.wait_for(lambda: len(steps()) > before + 20)
        return flow_run

    def ended(flow_run: str) -> Record:
        # The process that ends says that it crashed, before its worker, which knows better, has the last word.
        site.wait_for(lambda: site.state(flow_run) == "CANCELLED")
        site.wait_for(lambda: (found := attempt()) and found.status != "RUNNING")
        record = attempt()
        assert record is not None
        return record

    told = begun()
    site.done(f"prefect flow-run cancel {told}")
    first = ended(told)
    assert first.status == "KILLED"
    taught = steps()
    states = store.home / "work" / first.key / "states"
    assert [int(folder.name) for folder in states.iterdir()] == [taught[-1]]

    untold = begun()
    site.server.stop(signal.SIGKILL)
    worker = site.workers["gpu"].main()
    assert worker is not None
    worker.suspend()  # as one that has lost its server for long: it no longer hears what is cancelled
    time.sleep(5)
    site.server.start()
    assert attempt().status == "RUNNING"  # type: ignore[union-attr]
    cancelling = {"type": "CANCELLING", "name": "Cancelling"}
    site.wait_for(lambda: site.api(f"flow_runs/{untold}/set_state", state=cancelling)["status"] == "ACCEPT")
    second = ended(untold)
    assert (second.id, second.status) == (first.id, "KILLED")
    assert steps()[: len(taught)] == taught
    assert steps() == list(range(1, len(steps()) + 1)), "no step was done twice"
    assert len(list(states.iterdir())) > 0
    worker.resume()
    assert site.state(told) == "CANCELLED"


def test_no_deployment_names_a_gpu() -> None:
    settings = [line for line in FILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    assert not any("CUDA_VISIBLE_DEVICES" in line for line in settings)
