"""Pipelines whose stages are done elsewhere, by workers that are made of this process."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.states import Failed, Running

from dpr_core.config.evaluation import JudgeConfig, ScriptedJudgeConfig
from dpr_core.config.pipeline import PipelineConfig
from flows import orchestration, wiring
from flows.dispatch import places_of
from flows.pipeline import _Runner
from flows.placed import placed
from tasks import placement
from tasks.artifacts.store import Store
from tasks.graph import Node, Planned
from tasks.launch import ranks

pytestmark = pytest.mark.integration

TINY = Path(__file__).with_name("tiny.yaml")

Dpr = Callable[..., Any]


class Workers:
    """A server with workers on every pool, who do what they are given when they are first asked how far it is."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.given: dict[UUID, dict[str, Any]] = {}
        self.places: dict[str, str] = {}
        self.keys: set[str] = set()

    def check(self, place: str) -> list[str]:
        return []

    def start(self, place: str, name: str, parameters: dict[str, Any], key: str) -> Any:
        assert key not in self.keys
        self.keys.add(key)
        flow_run = uuid4()
        self.given[flow_run] = json.loads(json.dumps(parameters))
        self.places[name] = place
        return SimpleNamespace(id=flow_run, name=name, state=Running(), tags=[])

    def read(self, flow_run: UUID) -> Any:
        given = self.given[flow_run]
        broken = Failed(message="the worker has no such file") if given["name"] == self.failing else None
        orchestration._WORK.set(None)  # a worker is another process, and not within the controller's flow
        state = broken or placed.fn(**given)
        return SimpleNamespace(id=flow_run, name=given["name"], state=state, state_type=state.type, tags=[])

    def cancel(self, flow_run: UUID) -> None:
        raise AssertionError("nothing is to be cancelled")


@pytest.fixture
def workers(prefect_here: None, monkeypatch: pytest.MonkeyPatch) -> Workers:
    made = Workers()
    monkeypatch.setattr(placement, "Server", lambda: made)
    monkeypatch.setattr(placement, "POLL_SECONDS", 0.0)
    return made


@pytest.fixture
def report_again(made: Any) -> tuple[object, ...]:
    """A command with one stage to run, of which nothing else in this session knows."""
    return "rerun", made.id("report"), "--json", "--set"


def test_a_stage_on_a_pool_is_the_same_artifact(
    made: Any, dpr: Dpr, workers: Workers, open_store: Callable[[Path], Store], report_again: tuple[object, ...]
) -> None:
    result = dpr(*report_again, "title=placed", "--place", "*=cpu/night", home=made.home)
    assert result.status == 0, result.stderr
    document = result.json
    [entry] = document["stages"]
    assert (entry["name"], entry["status"]) == ("report", "ran")
    assert workers.places == {"report": "cpu/night"}
    record = open_store(made.home).record(entry["id"])
    assert (record.parent, record.config["title"]) == (document["run_id"], "placed")
    assert document["results"]["title"] == "placed"
    assert entry["metrics"] == record.results
    again = dpr(*report_again, "title=placed", home=made.home).json
    assert [(each["id"], each["status"]) for each in again["stages"]] == [(entry["id"], "reused")]


def test_a_failure_elsewhere_takes_with_it_only_what_is_built_on_it(made: Any, dpr: Dpr, workers: Workers) -> None:
    workers.failing = "diagnose"
    changed = ("run", TINY, "--set", "report.title=besides", "--set", "diagnose.seed=5", "--place", "*=cpu")
    failed = dpr(*changed, "--json", home=made.home)
    failed.assert_refused(1, "error: the worker has no such file")
    assert set(workers.places) == {"diagnose", "report"}
    plan = {step["name"]: step["status"] for step in dpr(*changed, "--plan", "--json", home=made.home).json["plan"]}
    assert [name for name, status in plan.items() if status == "run"] == ["diagnose"]


def test_several_failures_are_named_together(made: Any, dpr: Dpr, workers: Workers) -> None:
    changed = ("run", TINY, "--set", "report.title=two", "--set", "diagnose.seed=6", "--place", "*=cpu")
    workers.failing = "diagnose"
    workers.start = _refusing(workers.start)  # type: ignore[method-assign]
    failed = dpr(*changed, home=made.home)
    failed.assert_refused(1, "2 failed; everything else is made and kept", "diagnose: the worker", "report: full")


def _refusing(start: Callable[..., Any]) -> Callable[..., Any]:
    from dpr_core.errors import DensePathError

    def refusing(place: str, name: str, *more: Any) -> Any:
        if name == "report":
            raise DensePathError("full")
        return start(place, name, *more)

    return refusing


def test_the_plan_says_where(dpr: Dpr, workers: Workers) -> None:
    planned = ("run", TINY, "--set", "place.sft=gpu8", "--place", "*=cpu", "--place", "judge=here", "--plan")
    where = {step["stage"]: step["where"] for step in dpr(*planned, "--json").json["plan"]}
    assert {stage: where[stage] for stage in ("sft", "reward", "judge")} == {
        "sft": "gpu8",
        "reward": "cpu",
        "judge": "here",
    }
    assert "where" in dpr(*planned).stdout
    assert "where" not in dpr("run", TINY, "--plan").stdout
    swept = dpr("sweep", TINY, "--over", "seed=1,2", "--place", "reinforce=gpu8", "--plan").stdout
    assert [line.split()[-1] for line in swept.splitlines() if line.split()[:1] == ["reinforce"]] == ["gpu8"]


@pytest.mark.usefixtures("prefect_here")
def test_a_pool_that_is_not_there_is_refused_before_anything_begins(
    dpr: Dpr, tmp_path: Path, open_store: Callable[[Path], Store]
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="bare", type="process"))
    home = tmp_path / "home"
    wanted = ("run", TINY, "--place", "sft=nowhere", "--place", "reward=bare", "--place", "judge=bare/queue")
    said = ["there is no work pool 'nowhere'; make it with: prefect work-pool create 'nowhere'"]
    said += ["the flow placed is not deployed on the work pool 'bare'", "the work pool bare has no queue 'queue'"]
    dpr(*wanted, home=home).assert_refused(2, *said)
    obstacles = "\n".join(dpr(*wanted, "--plan", "--json", home=home).json["obstacles"])
    assert all(each in obstacles for each in said)
    assert open_store(home).parent_runs.all() == []


def test_without_a_server_there_are_no_pools(dpr: Dpr, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        [obstacle] = dpr("run", TINY, "--place", "sft=gpu", "--plan", "--json").json["obstacles"]
    assert "set PREFECT_API_URL" in obstacle


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "0.0.1"}, "this worker has dense-path"),
        ({"stage_version": 99}, "and the pipeline 99, both of dense-path"),
        ({"config": {"titel": "x"}}, "report: titel: no such field; did you mean title?"),
        ({"stage": "sfft"}, "there is no stage 'sfft'; did you mean sft?"),
        ({"inputs": {"DPR on lab": "f" * 32}}, "there is no artifact"),
    ],
)
def test_a_worker_refuses_in_a_sentence(
    dpr: Dpr, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    monkeypatch.setenv("DPR_HOME", str(tmp_path / "home"))
    job = {"stage": "report", "name": "report", "config": {}, "inputs": {}, **change}
    state = placed.fn(**job)
    assert (state.name, state.is_failed()) == ("Refused", True)
    assert words in state.message


def test_a_controller_does_itself_what_is_placed_on_its_own_pool(tiny: Callable[..., PipelineConfig]) -> None:
    nodes = wiring.nodes(tiny())
    planned = [Planned(node.name, node.stage, "reuse" if node.stage == "sft" else "run", None, "") for node in nodes]
    rules = {"sft": "gpu", "reward": "cpu/controllers", "reinforce": "gpu", "*": "here"}
    assert places_of(nodes, planned, rules, None) == {"reward": "cpu/controllers", "reinforce": "gpu"}
    assert places_of(nodes, planned, rules, "cpu") == {"reinforce": "gpu"}


def test_only_a_judge_behind_a_network_is_waited_for() -> None:
    runner = _Runner({}, [], None, 1)
    runner._places = {"elsewhere": "gpu"}
    judges = JudgeConfig(), JudgeConfig(by=ScriptedJudgeConfig())
    assert [runner._waits(Node("judge", "judge", config, {})) for config in judges] == [True, False]
    assert runner._waits(Node("elsewhere", "judge", judges[1], {}))


@pytest.mark.slow
def test_a_stage_starts_as_many_ranks_as_the_machine_of_its_pool_has_gpus(
    made: Any, dpr: Dpr, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not there, and the ranks share the cores."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    started: list[int | None] = []
    start = ranks._started
    monkeypatch.setattr(
        ranks, "_started", lambda job, launch, folder: started.append(launch.processes) or start(job, launch, folder)
    )
    settings = ("--set", "learning_rate=2.0e-3", "--set", "execution.launch.processes=null")
    result = dpr("rerun", made.id("sft"), *settings, "--json", "--place", "*=gpu8", home=made.home)
    assert result.status == 0, result.stderr
    [entry] = result.json["stages"]
    assert (entry["status"], workers.places, started) == ("ran", {"sft": "gpu8"}, [2])
