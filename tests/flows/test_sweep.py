"""Sweeps of the tiny pipeline: in processes that share the work, again, after failures, and over a pool."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dpr_core.config.pipeline import PipelineConfig
from dpr_core.experiments.points import Study
from flows.cli.run import usable_jobs
from flows.requests import SweepRequest
from tasks.artifacts.store import Store
from tasks.graph import Planned
from tasks.run_stage import Outcome, StageJob

pytestmark = pytest.mark.integration

TINY = Path(__file__).with_name("tiny.yaml")
GAMMA = "reinforce.algorithm.gamma"
SWEEP = ("sweep", TINY, "--over", f"{GAMMA}=0.9,1", "--set", "evaluation.controls={}")
ONE = ("--jobs", 1)

Dpr = Callable[..., Any]
Tiny = Callable[..., PipelineConfig]
OpenStore = Callable[[Path], Store]
RunGraph = Callable[..., dict[str, Outcome]]


@dataclass(frozen=True)
class Swept:
    home: Path
    result: Any


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, dpr_process: Dpr) -> Swept:
    """Two values of gamma, made by two processes."""
    home = tmp_path_factory.mktemp("swept") / "home"
    return Swept(home, dpr_process(*SWEEP, "--jobs", 2, "--json", home=home))


def stages(document: Any, status: str) -> dict[str, str]:
    return {entry["name"]: entry["id"] for entry in document["stages"] if entry["status"] == status}


@pytest.mark.slow
def test_two_processes_make_every_stage_once(swept: Swept, open_store: OpenStore) -> None:
    document = swept.result.json
    assert set(document) == {"run_id", "stages", "results"}
    names = [entry["name"] for entry in document["stages"]]
    assert len(set(names)) == len(names)
    assert sorted(names) == sorted(
        ["backbone", "subsample", "sft", "reward", "diagnose", "answer SFT on lab", "experiment over gamma"]
        + [f"{name} (gamma={g})" for g in (0.9, 1) for name in ("reinforce", "answer DPR on lab", "judge DPR on lab")]
        + [f"report (gamma={g})" for g in (0.9, 1)]
    )
    store = open_store(swept.home)
    assert sorted(record.id for record in store.records()) == sorted(stages(document, "ran").values())
    assert {record.parent for record in store.records()} == {document["run_id"]}
    for artifact in stages(document, "ran").values():
        assert store.verify(artifact) == []
    assert "stage 14 of 15: " in swept.result.stderr


@pytest.mark.slow
def test_the_table_has_every_policy_of_every_point(swept: Swept) -> None:
    seen = swept.result.json["results"]["experiment over gamma"]["observations"]
    assert [(each["point"], each["policy"]) for each in seen] == [
        (point, policy) for point in ("gamma=0.9", "gamma=1") for policy in ("SFT", "DPR")
    ]
    assert [each["values"] for each in seen[::2]] == [{GAMMA: 0.9}, {GAMMA: 1}]
    assert any(name.startswith("diagnose/") for name in seen[1]["metrics"])


@pytest.mark.slow
def test_a_sweep_says_what_it_varies_and_has_a_row_for_every_policy_of_every_point(
    swept: Swept, open_store: OpenStore
) -> None:
    store, run_id = open_store(swept.home), swept.result.json["run_id"]
    parent = store._client.get_run(run_id)
    assert (parent.info.run_name, parent.data.tags["dpr.changed"]) == ("sweep tiny gamma=0.9+1", f"{GAMMA}=0.9,1")
    assert (parent.data.params[GAMMA], parent.data.params["sft.batch_size"]) == ("[0.9, 1.0]", "8")
    under = f"tags.`mlflow.parentRunId` = '{run_id}' AND tags.`dpr.policy` LIKE '%'"
    rows = [run.info.run_name for run in store._client.search_runs([store._experiment], under)]
    assert sorted(rows) == ["DPR gamma=0.9", "DPR gamma=1", "SFT"]


@pytest.mark.slow
def test_a_sweep_makes_what_a_run_makes(swept: Swept, dpr: Dpr) -> None:
    step = dpr(
        "run", TINY, "--set", f"{GAMMA}=0.9", "--set", "evaluation.controls={}", "--plan", "--json", home=swept.home
    )
    assert {planned["status"] for planned in step.json["plan"]} == {"reuse"}


@pytest.mark.slow
def test_again_it_reuses_everything_and_shows_the_same_table(swept: Swept, dpr: Dpr) -> None:
    again = dpr(*SWEEP, "--json", home=swept.home).json
    assert sorted(stages(again, "reused").values()) == sorted(stages(swept.result.json, "ran").values())
    assert stages(again, "ran") == {}
    assert again["results"] == swept.result.json["results"]
    shown = dpr(*SWEEP, home=swept.home).stdout
    assert "Nothing had changed: every stage was reused." in shown
    assert stages(again, "reused")["experiment over gamma"] in shown


@pytest.mark.slow
def test_the_plan_counts_what_is_shared_and_what_is_there(swept: Swept, dpr: Dpr, open_store: OpenStore) -> None:
    before = len(open_store(swept.home).records())
    wider = ("sweep", TINY, "--over", f"{GAMMA}=0.9,0.95,1", "--set", "evaluation.controls={}", "--plan")
    document = dpr(*wider, "--json", home=swept.home).json
    assert document["points"] == ["gamma=0.9", "gamma=0.95", "gamma=1"]
    assert document["stages"] == {"unshared": 31, "shared": 19, "reuse": 14, "run": 5}
    assert [step["name"] for step in document["plan"] if step["status"] == "run"] == [
        "reinforce (gamma=0.95)",
        "answer DPR on lab (gamma=0.95)",
        "judge DPR on lab (gamma=0.95)",
        "report (gamma=0.95)",
        "experiment over gamma",
    ]
    shown = dpr(*wider, home=swept.home).stdout
    assert "3 points: 5 of 19 stages would run, 14 are there; nothing was run." in shown
    assert len(open_store(swept.home).records()) == before


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_here")
def test_a_point_that_fails_is_named_and_the_others_are_tabulated(
    swept: Swept, dpr: Dpr, monkeypatch: pytest.MonkeyPatch, open_store: OpenStore
) -> None:
    over = ("sweep", TINY, "--over", "backbone.probe_accuracy=0,0.99", "--set", "evaluation.controls={}", "--json")
    result = dpr(*over, *ONE, home=swept.home)
    assert result.status == 1
    assert "error: 1 failed; everything else is made and kept" in result.stderr
    assert "probe_accuracy=0.99: backbone (probe_accuracy=0.99): the lab backbone did not learn" in result.stderr
    [why] = result.json["failed"].values()
    assert "did not learn its task" in why
    [table] = result.json["results"].values()
    assert {each["point"] for each in table["observations"]} == {"probe_accuracy=0"}
    store = open_store(swept.home)
    assert [record.status for record in store.records("backbone")] == ["FAILED", "FINISHED"]


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_here")
def test_after_an_interrupt_it_goes_on_where_it_was(
    dpr: Dpr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_store: OpenStore
) -> None:
    from flows import pipeline

    made = pipeline.stage_task

    def interrupted(job: StageJob, run: Callable[[StageJob], Outcome]) -> Outcome:
        if job.stage == "judge":
            raise KeyboardInterrupt
        return made(job, run)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "stage_task", interrupted)
        stopped = dpr(*SWEEP, *ONE, "--json", home=tmp_path / "home")
    assert (stopped.status, stopped.stdout) == (130, "")
    before = {record.id for record in open_store(tmp_path / "home").records()}
    assert before
    document = dpr(*SWEEP, *ONE, "--json", home=tmp_path / "home").json
    assert before == set(stages(document, "reused").values())
    assert len(document["stages"]) == 15


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--over field=value,value"),
        (["--over", "reinforce.gama=1,2"], "tiny, point gama=1: reinforce.gama: no such field"),
        (["--over", "seed=1,2", "--place", "lunch=gpu"], "--place there is no stage 'lunch'"),
        (["--over", "seed=1,2", "--set", "evaluation.benchmarks={}"], "no benchmark"),
    ],
)
def test_a_wrong_request_is_told_before_anything_is_made(dpr: Dpr, arguments: list[str], words: str) -> None:
    dpr("sweep", TINY, *arguments).assert_refused(2, words)


@pytest.mark.parametrize(
    ("backbone", "cores", "to_run", "expected"),
    [
        ([], 8, 100, 8),
        ([], 8, 3, 3),
        ([], 1, 100, 1),
        ([], 200, 1000, 64),
        (["backbone={type: pretrained, name: x}"], 8, 100, 1),
    ],
)
def test_on_the_lab_every_core_is_used_where_nothing_is_said(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, backbone: list[str], cores: int, to_run: int, expected: int
) -> None:
    monkeypatch.setattr("dpr_core.cores.usable_cores", lambda: cores)
    study = Study(title="t", config=tiny(*backbone), over={"seed": [1, 2]})
    request = SweepRequest(studies=[study], name="s")
    planned = [Planned(str(number), "sft", "run", None, "") for number in range(to_run)]
    assert usable_jobs(request, planned, {}) == expected
    assert usable_jobs(request, planned, dict.fromkeys(map(str, range(to_run)), "gpu")) == 1


@pytest.mark.usefixtures("prefect_here")
@pytest.mark.parametrize(("given", "expected"), [((), 3), (("--jobs", 2), 2), (("--place", "*=gpu"), 1)])
def test_the_number_of_processes_reaches_the_flow(
    dpr: Dpr, monkeypatch: pytest.MonkeyPatch, given: tuple[object, ...], expected: int
) -> None:
    from dpr_core.errors import DensePathError

    def flow(studies: object, name: str, jobs: int, place: object) -> None:
        raise DensePathError(f"{jobs} jobs")

    monkeypatch.setattr("flows.pipeline.sweep", flow)
    monkeypatch.setattr("dpr_core.cores.usable_cores", lambda: 3)
    dpr(*SWEEP, *given).assert_refused(1, f"error: {expected} jobs")


def test_references_that_sft_does_not_keep_are_added_and_told(dpr: Dpr) -> None:
    result = dpr("sweep", TINY, "--over", "reward.reference=0.25,0.5", "--plan", "--json")
    assert "sft.checkpoints keeps 0.25 too, so that one SFT run serves every reference" in result.stderr
    assert [step["name"] for step in result.json["plan"] if step["stage"] == "sft"] == ["sft"]
