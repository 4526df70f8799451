"""Parent runs that were interrupted: seen as such, taken up by the same request, ended where nobody does."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dpr_core.errors import UsageError
from tasks.artifacts.parent_runs import PipelineInfo, PolicyRow, StoredRequest
from tasks.artifacts.store import Store
from tasks.cleanup import GarbageCollector
from tasks.locks import exclusive, if_free, is_held
from tasks.run_stage import Outcome, run_stage
from tasks.running.stage import Stage
from tasks.running.stage_workdir import StageWorkdir
from tasks.running.workspace import Workspace
from tests.forked import Forked
from tests.interruption import Killed

Make = Callable[..., Outcome]
Asked = Callable[..., PipelineInfo]
REPOSITORY = Path(__file__).parents[3]


def rows_of(store: Store, parent: str) -> dict[str, Any]:
    under = f"tags.`mlflow.parentRunId` = '{parent}' AND tags.`dpr.policy` LIKE '%'"
    return {run.info.run_id: run for run in store._client.search_runs([store._experiment], under)}


def test_rows_of_policies_are_made_once_and_follow_their_artifacts(store: Store, about: Asked) -> None:
    parent = store.parent_runs.begin(about())
    sft = PolicyRow("SFT", "", {"win_rate": 0.5}, {"sft": "a" * 32}, {"sft": {"seed": 0}})
    dpr = PolicyRow(
        "DPR", "gamma=0.95", {"win_rate": 0.75}, {"reinforce": "b" * 32}, {"policy": {"type": "as_trained"}}
    )
    store.parent_runs.show_policies(parent, [sft, dpr])
    first = rows_of(store, parent)
    assert {run.info.run_name for run in first.values()} == {"SFT", "DPR gamma=0.95"}
    store.parent_runs.show_policies(parent, [sft, dpr])
    assert rows_of(store, parent).keys() == first.keys()
    store.parent_runs.show_policies(
        parent, [sft, replace(dpr, made_of={"reinforce": "c" * 32}, metrics={"win_rate": 0.8})]
    )
    again = rows_of(store, parent)
    assert {run.info.run_name: run.data.metrics for run in again.values()} == {
        "SFT": {"win_rate": 0.5},
        "DPR gamma=0.95": {"win_rate": 0.8},
    }
    assert len(again.keys() & first.keys()) == 1
    store.parent_runs.show_policies(parent, [sft, replace(dpr, label="")])
    assert {run.info.run_name for run in rows_of(store, parent).values()} == {"SFT", "DPR"}
    assert [run.id for run in store.parent_runs.all()] == [parent]
    assert (store.records(), store.claims(), store.unregistered()) == ([], [], [])
    assert {piece.kind for piece in GarbageCollector(store).find()} <= {"lock"}


@pytest.mark.parametrize("killed_in", ["log_params", "log_metrics", "set_terminated"])
def test_a_row_that_was_killed_is_finished_later(
    store: Store, about: Asked, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    parent = store.parent_runs.begin(about())
    row = PolicyRow("SFT", "", {"win_rate": 0.5}, {"sft": "a" * 32}, {"sft": {"seed": 0}})

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(store._client, killed_in, kill, raising=False)
        with pytest.raises(KeyboardInterrupt):
            store.parent_runs.show_policies(parent, [row])
    store.parent_runs.show_policies(parent, [row])
    [run] = rows_of(store, parent).values()
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"win_rate": 0.5})
    assert run.data.params == {"sft.seed": "0"}


def test_what_a_rerun_changes_is_a_tag_and_in_the_name_of_its_run(store: Store, about: Asked) -> None:
    info = replace(about("rerun number"), changed="algorithm.gamma=0.95", run_name="number gamma=0.95")
    run = store._client.get_run(store.parent_runs.begin(info))
    assert (run.info.run_name, run.data.tags["dpr.changed"]) == ("number gamma=0.95", "algorithm.gamma=0.95")
    assert [each.name for each in store.parent_runs.all()] == ["rerun number"]


def test_the_experiments_page_is_set_up_once_and_what_somebody_wrote_stays(store: Store, about: Asked) -> None:
    store.parent_runs.begin(about())
    tags = store._client.get_experiment(store._experiment).tags
    assert "viewStateShareKey=policies" in tags["mlflow.note.content"]
    assert json.loads(tags["mlflow.sharedViewState.policies"])["selectedColumns"][0] == "metrics.`win_rate`"
    store._client.set_experiment_tag(store._experiment, "mlflow.note.content", "ours")
    store.parent_runs.begin(about())
    assert store._client.get_experiment(store._experiment).tags["mlflow.note.content"] == "ours"


def test_a_server_that_refuses_the_page_or_changed_settings_ends_no_pipeline(
    store: Store, about: Asked, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.exceptions import MlflowException

    def refuse(*_: object) -> None:
        raise MlflowException("PERMISSION_DENIED")

    monkeypatch.setattr("mlflow.MlflowClient.set_experiment_tag", refuse)
    left = store.parent_runs.begin(about("demo", {"a": 1}))
    with store.parent_runs.running(replace(about("demo", {"a": 1}), settings={"a": 2})) as again:
        assert again == left
    assert store._client.get_run(left).data.params == {"a": "1"}
    for what in ("links to tables of policies", "settings"):
        assert f"{what} are not listed in MLflow" in caplog.text


def test_a_process_that_is_gone_leaves_it_interrupted_and_the_same_request_takes_it_up(
    store: Store, about: Asked
) -> None:
    left = store.parent_runs.begin(about("demo", {"a": 1}))
    [found] = store.parent_runs.all()
    assert (found.id, found.status, found.is_resumable) == (left, "INTERRUPTED", True)
    assert store.parent_runs.resumable() == [found]
    with store.parent_runs.running(about("demo", {"a": 1})) as again:
        assert again == left
        [found] = store.parent_runs.all()
        assert (found.status, found.is_resumable) == ("RUNNING", False)
        assert store.parent_runs.resumable() == []
    store.parent_runs.end(left, "FINISHED", {})
    assert store.parent_runs.resumable() == []
    with store.parent_runs.running(about("demo", {"a": 1})) as another:
        assert another != left


def test_another_request_gets_its_own_run_and_ends_the_dead_one(store: Store, about: Asked) -> None:
    left = store.parent_runs.begin(about("demo", {"a": 1}))
    with store.parent_runs.running(about("demo", {"a": 2})) as run_id:
        assert run_id != left
        with pytest.raises(UsageError, match=f"{left[:8]} has no results: its process ended without a word"):
            store.parent_runs.document(left)
        assert {p.id: (p.status, p.reason) for p in store.parent_runs.all()} == {
            run_id: ("RUNNING", ""),
            left: ("KILLED", "its process ended without a word"),
        }
        assert [pipeline.id for pipeline in store.parent_runs.resumable()] == [left]


def test_what_a_live_process_is_at_is_not_taken_from_it(store: Store, about: Asked) -> None:
    with store.parent_runs.running(about()) as first, store.parent_runs.running(about()) as second:
        assert first != second
        assert {pipeline.status for pipeline in store.parent_runs.all()} == {"RUNNING"}
        assert store.parent_runs.end_dead() == []


def test_how_it_is_done_is_no_part_of_the_request(store: Store) -> None:
    one = PipelineInfo("s", "", {}, StoredRequest({"studies": 1}, {"jobs": 1}))
    four = PipelineInfo("s", "", {}, StoredRequest({"studies": 1}, {"jobs": 4}))
    left = store.parent_runs.begin(one)
    with store.parent_runs.running(four) as run_id:
        assert run_id == left
    assert dict(store.parent_runs.all()[0].request.execution) == {"jobs": 1}  # type: ignore[union-attr]


def test_one_that_finished_later_settles_those_before_it(store: Store, about: Asked) -> None:
    store.parent_runs.begin(about())
    finished = store.parent_runs.begin(about())
    store.parent_runs.end(finished, "FINISHED", {})
    assert store.parent_runs.resumable() == []


def test_one_that_failed_may_go_on_but_was_not_interrupted(store: Store, about: Asked) -> None:
    failed = store.parent_runs.begin(about())
    store.parent_runs.end(failed, "FAILED", {}, reason="ValueError: no")
    [found] = store.parent_runs.resumable()
    assert (found.is_interrupted, found.reason) == (False, "ValueError: no")
    with store.parent_runs.running(about()) as again:
        assert again == failed


def test_a_pipeline_of_another_machine_is_left_alone(
    store: Store, about: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.parent_runs, "_owner", "elsewhere:/home")
    theirs = store.parent_runs.begin(about())
    monkeypatch.undo()
    with store.parent_runs.running(about()) as ours:
        assert ours != theirs
    assert {p.id: p.status for p in store.parent_runs.all()}[theirs] == "RUNNING"


def test_a_long_request_is_kept_whole(store: Store) -> None:
    what = {"config": {"text": "x" * 30_000}}
    store.parent_runs.begin(PipelineInfo("long", "", {}, StoredRequest(what)))
    [found] = store.parent_runs.all()
    assert found.request == StoredRequest(what)
    assert store.parent_runs.find(found.id[:8]) == found


# Force


def test_a_forced_request_reuses_what_it_made_itself(store: Store, make: Make, about: Asked, toys: Any) -> None:
    before = make("number")
    store.parent_runs.begin(about())
    moment = store.parent_runs.since(about().request)
    [pipeline] = store.parent_runs.all()
    assert moment == pipeline.started
    config = toys["number"].config()
    first = run_stage(toys["number"], config, {}, store=store, not_before=moment)
    assert (first.status, first.id != before.id) == ("ran", True)
    again = run_stage(toys["number"], config, {}, store=store, not_before=store.parent_runs.since(about().request))
    assert (again.status, again.id) == ("reused", first.id)


def interrupted(toys: dict[str, Stage], store: Store, moment: datetime | None) -> str:
    """An attempt that has kept a state; returns its ID."""
    import dataclasses

    def body(config: Any, work: Workspace) -> dict[str, float]:
        work._workdir.save_state(1, 1, {})
        raise Killed

    stage = dataclasses.replace(toys["number"], body=body)
    with pytest.raises(Killed):
        run_stage(stage, stage.config(), {}, store=store, not_before=moment)
    return store.records()[0].id


@pytest.mark.parametrize("begun", ["before", "after"])
def test_a_forced_request_goes_on_with_an_attempt_only_if_it_began_after_it(
    store: Store, toys: dict[str, Stage], begun: str
) -> None:
    moment = datetime.now(UTC)
    time.sleep(0.01)
    left = interrupted(toys, store, moment)
    asked = moment if begun == "after" else datetime.now(UTC)
    outcome = run_stage(toys["number"], toys["number"].config(), {}, store=store, not_before=asked)
    assert (outcome.status, outcome.id == left) == ("ran", begun == "after")
    assert list((store.home / "work").iterdir()) == []


# Locks


def test_a_lock_file_that_was_removed_by_its_holder_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    assert not is_held(path)
    with exclusive(path):
        assert is_held(path)
        with if_free(path) as mine:
            assert not mine
        path.unlink()
    with exclusive(path):
        assert path.exists()
        assert is_held(path)
    assert not is_held(path)


WAITER = """
import sys
from pathlib import Path
from tasks.locks import exclusive
path = Path(sys.argv[1])
with exclusive(path, lambda: print("waits", flush=True)):
    print(path.exists(), flush=True)
    sys.stdin.read()
"""


def test_who_waits_for_a_lock_file_that_is_removed_gets_one_that_others_see(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with exclusive(path):
        waiter = subprocess.Popen(
            [sys.executable, "-c", WAITER, str(path)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == "waits\n"
        path.unlink()
    assert waiter.stdout.readline() == "True\n"
    assert is_held(path)
    waiter.communicate("")
    assert not is_held(path)


# Two at once

SLOW = """
import json, runpy, sys, time
from dataclasses import replace
from pathlib import Path
from tasks.run_stage import run_stage
from tasks.artifacts.store import Store
toys = runpy.run_path("tests/tasks/conftest.py")
store = Store.open()

def body(config, work):
    left = work.restore()
    first = 0 if left is None else left["step"]
    (store.home / f"began at {first}").touch()
    for step in range(first, 8):
        work._workdir.save_state(step, step, {"step": step})
        time.sleep(600 if left is None and step == 3 else 0)
    toys["write"](work, config.value)
    return {}

import logging
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
outcome = run_stage(replace(toys["NUMBER"], body=body), toys["Number"](), {}, store=store)
print(outcome.id, outcome.status, flush=True)
"""


def started(code: str) -> Forked:
    return Forked(["-c", code], os.environ, REPOSITORY)


@pytest.mark.integration
def test_the_second_takes_over_from_the_first_that_is_killed_and_goes_on_from_its_state(store: Store) -> None:
    first = started(SLOW)
    [attempt] = wait_for(lambda: list((store.home / "work").glob("*/states/*3/SEAL.json")))
    second = started(SLOW)
    assert "another process is making this; waiting for it" in second.stdout.readline()
    os.kill(first.pid, signal.SIGKILL)
    killed = time.monotonic()
    assert "goes on with run" in second.stdout.readline()
    assert time.monotonic() - killed < 30
    rest = second.communicate(timeout=60)[0]
    [record] = store.records()
    assert rest.split()[-2:] == [record.id, "ran"]
    assert store.verify(record.id) == []
    assert {path.name for path in store.home.glob("began at *")} == {"began at 0", "began at 3"}
    assert not StageWorkdir(attempt.parents[2]).folder.exists()
    first.communicate()


def wait_for(found: Callable[[], list[Path]]) -> list[Path]:
    deadline = time.monotonic() + 60
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found()


def test_the_parameters_are_kept_as_tags_that_people_can_read(store: Store, about: Asked) -> None:
    run_id = store.parent_runs.begin(about("demo", {"a": 1}))
    tags = store._client.get_run(run_id).data.tags
    assert json.loads(tags["dpr.what"]) == {"flow": "toy", "name": "demo", "a": 1}
    assert tags["dpr.request"] == about("demo", {"a": 1}).request.key
