"""Pipelines that were cut off: `dpr resume`, the same command, `dpr gc` and `dpr verify --all` after it."""

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dpr_core.config.pipeline import PipelineConfig
from dpr_core.errors import DensePathError
from dpr_core.experiments.points import Study
from flows.cli.resume_view import unfinished_table
from flows.dispatch import dispatch
from flows.requests import RerunRequest, RunRequest, StageRequest, SweepRequest, read_request
from flows.resume import chosen, unfinished
from tasks.artifacts.parent_runs import ParentRun, PipelineInfo, StoredRequest
from tasks.artifacts.store import Store
from tests import forked

pytestmark = pytest.mark.integration

TINY = Path(__file__).with_name("tiny.yaml")
LONG = ("--set", "reinforce.iterations=6", "--set", "reinforce.execution.checkpoint_steps=1")

Dpr = Callable[..., Any]
OpenStore = Callable[[Path], Store]


@pytest.fixture
def cut_off(flow_environment: Callable[..., dict[str, str]]) -> Callable[..., None]:
    """`cut_off(home, *arguments)`: start a command, and kill all its processes once REINFORCE has kept a state."""

    def cut(home: Path, *arguments: object) -> None:
        kill = (
            "import os, signal, sys; from flows.cli.__main__ import main\n"
            "from tasks.running.stage_workdir import StageWorkdir; save_state = StageWorkdir.save_state\n"
            "def save_and_kill(workdir, *more):\n"
            "    save_state(workdir, *more)\n"
            "    if len(list(workdir.folder.glob('states/*'))) == 2: os.killpg(0, signal.SIGKILL)\n"
            "StageWorkdir.save_state = save_and_kill; main()"
        )
        process = forked.run(["-c", kill, *arguments], flow_environment(home), home.parent, new_session=True)
        assert process.returncode == -signal.SIGKILL, process.stderr

    return cut


def by_name(store: Store) -> dict[str, Any]:
    return {record.name: record for record in store.records()}


@pytest.mark.slow
def test_what_was_killed_goes_on_in_its_own_runs(
    cut_off: Callable[..., None],
    dpr: Dpr,
    dpr_process: Dpr,
    open_store: OpenStore,
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    cut_off(home, "run", TINY, *LONG)
    store = open_store(home)
    before = by_name(store)
    [pipeline] = store.parent_runs.resumable()
    assert pipeline.status == "INTERRUPTED"

    listed = dpr("artifacts", home=home)
    assert "interrupted" in listed.stdout
    assert f"interrupted: {pipeline.title}; go on with: dpr resume" in listed.stderr
    shown = dpr("show", pipeline.id[:8], "--json", home=home).json
    assert (shown["status"], shown["asked"]["force"]) == ("INTERRUPTED", False)
    assert {stage["name"]: stage["status"] for stage in shown["stages"]}["reinforce"] == "INTERRUPTED"
    assert [piece["kind"] for piece in dpr("gc", "--plan", "--json", home=home).json["pieces"] if piece["bytes"]] == []

    [planned] = dpr("resume", "--plan", "--json", home=home).json["unfinished"]
    assert (planned["id"], planned["goes_on"], planned["there"]) == (pipeline.id, True, 5)
    assert planned["to_run"][0] == "reinforce"
    assert by_name(store) == before

    [resumed] = dpr_process("resume", "--json", home=home).json["resumed"]
    assert resumed["document"]["run_id"] == pipeline.id
    after = by_name(store)
    assert after["reinforce"].id == before["reinforce"].id
    assert len(store.records()) == 12, "no stage was begun twice"
    assert {record.parent for record in after.values()} == {pipeline.id}
    assert [(p.id, p.status) for p in store.parent_runs.all()] == [(pipeline.id, "FINISHED")]
    assert all(check["sound"] for check in dpr("verify", "--all", "--json", home=home).json)
    assert "Nothing is unfinished." in dpr("resume", home=home).stdout


# What is stored of a request


def stored(request: Any) -> ParentRun:
    from datetime import UTC, datetime

    return ParentRun("0" * 32, "x", "KILLED", datetime.now(UTC), request.stored())


def test_every_request_is_read_as_it_was_written(tiny: Callable[..., PipelineConfig]) -> None:
    from dpr_core.experiments.points import Study

    study = Study(title="t", config=tiny(), over={"seed": [1, 2]})
    for request in (
        RunRequest(config=tiny("seed=3"), force=True),
        RerunRequest(artifact="a" * 32, overrides=["seed=1"], downstream=True),
        StageRequest(stage="sft", config=tiny().sft.model_dump(mode="json"), inputs={"data": "b" * 32}),
        SweepRequest(studies=[study], name="sweep tiny", jobs=3, place={"*": "gpu"}),
    ):
        assert read_request(stored(request)) == request


def test_force_is_another_request_and_where_it_is_done_is_not(tiny: Callable[..., PipelineConfig]) -> None:
    def key(**changes: Any) -> str:
        study = Study(title="s", config=tiny(), over={"seed": [1]})
        return SweepRequest(studies=[study], name="s", **changes).stored().key

    assert key(jobs=1) == key(jobs=4) == key(place={"*": "gpu"})
    assert RunRequest(config=tiny()).stored().key != RunRequest(config=tiny(), force=True).stored().key
    assert RunRequest(config=tiny()).stored().key == RunRequest(config=tiny("place={sft: gpu}")).stored().key


def test_a_request_is_resumed_where_it_was_placed(tiny: Callable[..., PipelineConfig]) -> None:
    """By its recipe, and by what was said on top of that."""
    request = RunRequest(config=tiny("place={sft: gpu8, '*': cpu}"), place={"answer": "gpu", "*": "here"})
    everywhere = {"sft": "gpu8", "answer": "gpu", "*": "here"}
    assert request.places == read_request(stored(request)).places == everywhere
    sweep = SweepRequest(studies=[Study(title="s", config=tiny(), over={"seed": [1]})], name="s")
    earlier = replace(sweep.stored(), execution={"jobs": 2, "pool": "gpu"})
    found = read_request(replace(stored(sweep), request=earlier))
    assert (found.jobs, found.places) == (2, {"*": "gpu"})


def test_a_request_of_another_version_is_told(tiny: Callable[..., PipelineConfig]) -> None:
    pipeline = stored(RunRequest(config=tiny()))
    assert pipeline.request is not None
    content = {**pipeline.request.content, "config": {"nonsense": 1}}
    import dataclasses

    with pytest.raises(DensePathError, match="asked for in another version"):
        read_request(dataclasses.replace(pipeline, request=StoredRequest(content)))


# What is unfinished


def test_failed_pipelines_go_on_only_by_name_and_stages_without_a_pipeline_are_found(
    open_store: OpenStore, tmp_path: Path, tiny: Callable[..., PipelineConfig]
) -> None:
    store = open_store(tmp_path / "home")
    failed = store.parent_runs.begin(dispatch(RunRequest(config=tiny()), store).info)
    store.parent_runs.end(failed, "FAILED", {}, reason="ValueError: no")
    killed = store.parent_runs.begin(dispatch(RunRequest(config=tiny("seed=2")), store).info)
    subsample = tiny("seed=5").subsample
    alone = store.begin(
        stage="subsample", name="s", version=1, key="a" * 64, config=subsample, inputs={}, parent=None, description=""
    )
    there, _ = unfinished(store)
    assert [each.run.id for each in there] == [killed, failed, alone.id]
    assert [each.run.id for each in chosen(there, [])] == [killed, alone.id]
    assert [each.run.id for each in chosen(there, [failed[:8]])] == [failed]
    assert [each.note for each in there if each.failed] == ["ValueError: no"]
    with pytest.raises(DensePathError, match="'abc' is not one unfinished run"):
        chosen(there, ["abc"])


# What other machines left, or are at


def test_what_another_machine_left_goes_on_here_and_what_it_is_at_is_told(
    tmp_path: Path, tiny: Callable[..., PipelineConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/shared.db")
    monkeypatch.setenv("DPR_LEASE_SECONDS", "3")

    def store(home: str) -> Store:
        monkeypatch.setenv("DPR_HOME", str(tmp_path / home))
        return Store.open()

    def info(store: Store, seed: int) -> PipelineInfo:
        return dispatch(RunRequest(config=tiny(f"seed={seed}")), store).info

    theirs, ours = store("theirs"), store("ours")
    with ExitStack() as gone, ExitStack() as alive:
        with monkeypatch.context() as patched:
            patched.setattr("tasks.artifacts.leases.Lease.__enter__", lambda lease: lease)
            left = gone.enter_context(theirs.parent_runs.running(info(theirs, 1)))
        stopped = theirs.parent_runs.begin(info(theirs, 2))
        theirs.parent_runs.end(stopped, "KILLED", {}, "KeyboardInterrupt: ")
        going = alive.enter_context(theirs.parent_runs.running(info(theirs, 3)))
        every, elsewhere = unfinished(ours)
        assert {each.run.id: (each.run.status, each.where != "") for each in every} == {
            left: ("INTERRUPTED", True),
            stopped: ("KILLED", True),
        }
        assert [each.run.id for each in chosen(every, [])] == [left]
        assert [each.run.id for each in chosen(every, [stopped[:8]])] == [stopped]
        assert [(each.id, each.where.endswith("/theirs")) for each in elsewhere] == [(going, True)]
        shown = unfinished_table(every, chosen(every, []), elsewhere)
        said = Console(width=300, file=StringIO(), record=True)
        said.print(shown)
        text = said.export_text()
        assert f"{going[:8]} (tiny): " in text
        assert "/theirs works on it" in text
        assert f"What was stopped on another machine is, too: dpr resume {stopped[:8]}" in text
        theirs.parent_runs.end(going, "FINISHED", {})


# Removing


def test_gc_asks_and_removes(dpr: Dpr, open_store: OpenStore, tmp_path: Path) -> None:
    home = tmp_path / "home"
    open_store(home)
    assert "There is nothing to remove." in dpr("gc", "--plan", home=home).stdout
    orphan = home / "artifacts" / ("e" * 32)
    orphan.mkdir(parents=True)
    (orphan / "file").write_bytes(bytes(2000))
    assert "2 kB can be removed; nothing was." in dpr("gc", "--plan", home=home).stdout
    dpr("gc", home=home).assert_refused(2, "look at them with --plan, then say --yes")
    dpr("gc", "--older-than", "soon", home=home).assert_refused(2, "such as 12h, 7d or 2w")
    assert dpr("gc", "--older-than", "7d", "--yes", "--json", home=home).json["pieces"] == []
    document = dpr("gc", "--yes", "--json", home=home).json
    assert (document["removed"], document["bytes"]) == (True, 2000)
    assert not orphan.exists()


def test_verify_all_names_every_problem_and_goes_on(dpr: Dpr, open_store: OpenStore, tmp_path: Path) -> None:
    from dpr_core.config.data import LabSourceConfig, SubsampleConfig, TemplateConfig
    from tasks.registry import stage_named
    from tasks.run_stage import run_stage

    home = tmp_path / "home"
    store = open_store(home)
    made = []
    for seed in (1, 2, 3):
        data = SubsampleConfig(
            source=LabSourceConfig(rows=8), size=8, template=TemplateConfig(text="{prompt}\n"), seed=seed
        )
        made.append(run_stage(stage_named("subsample"), data, {}, store=store).id)
    files = [store.fetch(made[number]).path / "demonstrations.jsonl" for number in (0, 1)]
    files[0].unlink()
    os.truncate(files[1], 3)
    result = dpr("verify", "--all", "--json", home=home)
    assert result.status == 1
    problems = {check["id"]: check["problems"] for check in result.json}
    assert problems[made[0]] == ["demonstrations.jsonl: missing"]
    assert problems[made[1]][0].startswith("demonstrations.jsonl: 3 bytes, expected")
    assert problems[made[2]] == []
    assert "3 checked, 2 damaged." in dpr("verify", "--all", home=home).stdout
