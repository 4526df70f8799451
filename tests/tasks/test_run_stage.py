import dataclasses
import errno
import json
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tasks.artifacts.stage_run
from dpr_core import hashing
from dpr_core.config.base import StageConfig
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.reinforce import ReinforceConfig
from dpr_core.errors import DensePathError, UsageError
from tasks.artifacts.parent_runs import PipelineInfo
from tasks.artifacts.store import Store
from tasks.locks import exclusive
from tasks.registry import STAGES
from tasks.run_stage import RESUMED, Outcome, run_stage
from tasks.running.shutdown import Terminated, TimedOut, graceful_shutdown
from tasks.running.stage import Stage
from tasks.running.workspace import Workspace
from tests.forked import Forked
from tests.tasks.conftest import write

Make = Callable[..., Outcome]
REPOSITORY = Path(__file__).parents[2]


def with_body(stage: Stage, body: Callable[[Any, Workspace], dict[str, float]]) -> Stage:
    return dataclasses.replace(stage, body=body)


def value_of(store: Store, run_id: str) -> int:
    return int(json.loads((store.fetch(run_id).path / "deep" / "value.json").read_text()))


# Running and reusing


def test_a_stage_makes_an_artifact(store: Store, make: Make) -> None:
    outcome = make("number", value=6)
    assert (outcome.stage, outcome.name, outcome.status, outcome.metrics) == ("number", "number", "ran", {"value": 6.0})
    record = store.record(outcome.id)
    assert record.finished
    assert record.results == {"value": 6.0}
    assert store.metrics(outcome.id) == {"value": 6.0, "loss": pytest.approx(1 / 3)}
    assert value_of(store, outcome.id) == 6
    assert list((store.home / "work").iterdir()) == []


@pytest.mark.parametrize("lister", ["datasets_read", "model_measured"])
def test_what_cannot_be_listed_ends_no_stage(
    store: Store, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lister: str
) -> None:
    def fail(*_: object) -> None:
        raise UsageError("artifact abc was removed")

    monkeypatch.setattr(f"tasks.run_stage.{lister}", fail)
    assert store.record(make("number", value=6).id).finished
    assert "are not listed in MLflow: artifact abc was removed" in caplog.text


def test_inputs_reach_the_body_and_the_lineage(store: Store, make: Make) -> None:
    number = make("number", value=6)
    double = make("double", {"number": number.id[:8]}, factor=3)
    assert value_of(store, double.id) == 18
    assert store.record(double.id).inputs == {"number": number.id}
    entry = store.manifest(double.id).inputs["number"]
    assert entry == {"id": number.id, "digest": store.record(number.id).digest}


def test_the_same_work_is_reused(make: Make) -> None:
    first, second = make("number", value=6), make("number", value=6)
    assert second.status == "reused"
    assert (second.id, second.metrics) == (first.id, first.metrics)


@pytest.mark.parametrize("change", [{"value": 7}, {"seed": 1}])
def test_other_settings_are_other_work(make: Make, change: dict[str, int]) -> None:
    first, second = make("number"), make("number", **change)
    assert second.status == "ran"
    assert second.id != first.id


def test_how_the_work_is_done_does_not_matter(store: Store, make: Make) -> None:
    first, second = make("number", execution=1), make("number", execution=2)
    assert (second.id, second.status) == (first.id, "reused")
    assert store.record(first.id).config["execution"] == 1


def test_a_new_version_of_a_stage_is_other_work(store: Store, toys: dict[str, Stage], make: Make) -> None:
    first = make("number")
    newer = dataclasses.replace(toys["number"], version=2)
    assert run_stage(newer, newer.config(), {}, store=store).id != first.id


def test_a_revision_of_some_configs_is_other_work_for_these_alone(
    store: Store, toys: dict[str, Stage], make: Make
) -> None:
    one, two = make("number", value=1), make("number", value=2)
    revised = dataclasses.replace(toys["number"], revisions=lambda config: int(config.value == 2))
    same, other = (run_stage(revised, revised.config(value=value), {}, store=store) for value in (1, 2))
    assert (same.id, same.status) == (one.id, "reused")
    assert other.id != two.id
    assert store.manifest(other.id).stage_version == store.record(other.id).version == 2
    assert run_stage(revised, revised.config(value=2), {}, store=store).id == other.id
    assert store.verify(other.id) == []


def test_rollouts_at_another_temperature_than_1_are_learned_from_anew() -> None:
    """Artifacts from before their policy was scored at the temperature that drew are not reused."""
    reinforce = STAGES["reinforce"]
    assert [reinforce.version_of(ReinforceConfig(temperature=t)) for t in (1.0, 0.7, 1.3)] == [1, 2, 2]
    assert all(
        stage.version_of(ReinforceConfig()) == stage.version for stage in STAGES.values() if stage.name != "experiment"
    )


def test_same_work_gives_the_same_digest_under_other_ids(store: Store, make: Make) -> None:
    first = make("double", {"number": make("number").id})
    second = make("double", {"number": make("number", force=True).id}, force=True)
    assert second.status == "ran"
    assert second.id != first.id
    assert store.record(second.id).inputs != store.record(first.id).inputs
    assert store.record(second.id).digest == store.record(first.id).digest


def test_reuse_does_not_care_which_of_two_equal_inputs_it_gets(make: Make) -> None:
    first = make("double", {"number": make("number").id})
    assert make("double", {"number": make("number", force=True).id}).id == first.id


def test_the_description_says_what_and_why(store: Store, make: Make) -> None:
    def note(run_id: str) -> str:
        return str(store._client.get_run(run_id).data.tags["mlflow.note.content"])

    assert note(make("number").id) == "A number.\n\nRan because: never ran."
    assert note(make("number", value=2).id) == "A number.\n\nRan because: value: 1 -> 2."
    assert note(make("number", force=True).id) == "A number.\n\nRan because: it was asked for by force."


def test_a_damaged_artifact_is_not_reused(store: Store, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    first = make("number")
    (store.fetch(first.id).path / "weights.bin").unlink()
    second = make("number")
    assert second.status == "ran"
    assert f"artifact {first.id[:8]} (number) is damaged (weights.bin: missing)" in caplog.text
    assert make("number").id == second.id


def aged(body: Callable[[Any, Workspace], dict[str, float]]) -> Callable[[Any, Workspace], dict[str, float]]:
    """A body whose files are of an earlier moment at its end, as those of long work are."""

    def older(config: Any, work: Workspace) -> dict[str, float]:
        metrics = body(config, work)
        time.sleep(2 * hashing.CLOCK_NS / 1e9)
        return metrics

    return older


def test_a_payload_is_hashed_once_between_its_making_and_its_use(
    store: Store, toys: dict[str, Stage], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    hash_file = hashing.hash_file
    monkeypatch.setattr(hashing, "hash_file", lambda path: hashed.append(Path(path).name) or hash_file(path))
    number = dataclasses.replace(toys["number"], body=aged(toys["number"].body))
    made = run_stage(number, number.config(), {}, store=store)
    make("double", {"number": made.id})
    make("double", {"number": made.id}, factor=9)
    # The payloads of the two that were built on it are their own.
    assert [hashed.count(name) for name in ("weights.bin", "value.json")] == [1 + 2, 1 + 2]
    assert store.verify(made.id) == []
    assert hashed.count("weights.bin") == 2 + 2


def test_what_changes_after_its_hash_was_noted_is_published_as_it_is(store: Store, toys: dict[str, Stage]) -> None:
    """And what changes after that is damage."""

    def body(config: Any, work: Workspace) -> dict[str, float]:
        metrics = aged(toys["number"].body)(config, work)
        work._workdir.save_state(1, 1, {})
        aged(lambda *_: {"bytes": float((work.output / "weights.bin").write_bytes(bytes(256 * 40)))})(config, work)
        return metrics

    number = dataclasses.replace(toys["number"], body=body)
    made = run_stage(number, number.config(), {}, store=store)
    assert store.verify(made.id, quick=True) == store.verify(made.id) == []
    weights = store.fetch(made.id).path / "weights.bin"
    weights.write_bytes(bytes(range(256)) * 40)
    assert store.verify(made.id, quick=True) == ["weights.bin: its content has changed (sha256 differs)"]
    with pytest.raises(DensePathError, match="is damaged"):
        store.fetch(made.id)


def test_progress_is_passed_on(store: Store, toys: dict[str, Stage]) -> None:
    seen: list[tuple[int, int, str]] = []

    class Watcher:
        def advance(self, step: int, total: int, note: str = "", at_most: bool = False) -> None:
            seen.append((step, total, note))

        def part(self, what: str, done: int, total: int) -> None:
            """Not looked at."""

    stage = toys["number"]
    run_stage(stage, stage.config(), {}, store=store, progress=Watcher())
    assert seen == [(1, 3, ""), (2, 3, ""), (3, 3, "")]


def test_name_and_parent_are_stored(store: Store, toys: dict[str, Stage], about: Callable[..., PipelineInfo]) -> None:
    parent = store.parent_runs.begin(about())
    outcome = run_stage(toys["number"], toys["number"].config(), {}, store=store, parent=parent, name="first")
    record = store.record(outcome.id)
    assert (outcome.name, record.name, record.parent) == ("first", "first", parent)


# Inputs that do not fit


def nothing_was_started(store: Store, before: int) -> bool:
    return len(store.records()) == before and list((store.home / "work").iterdir()) == []


def test_an_unknown_role_is_refused(store: Store, make: Make) -> None:
    number = make("number").id
    with pytest.raises(UsageError, match="double has no input called numbr; its inputs: number"):
        make("double", {"number": number, "numbr": number})
    assert nothing_was_started(store, 1)


def test_a_missing_role_is_refused(store: Store, make: Make) -> None:
    with pytest.raises(UsageError, match=r"add needs the input double \(an artifact of double\)"):
        make("add", {"number": make("number").id})
    assert nothing_was_started(store, 1)


def test_an_artifact_of_the_wrong_stage_is_refused(store: Store, make: Make) -> None:
    double = make("double", {"number": make("number").id})
    with pytest.raises(UsageError) as caught:
        make("double", {"number": double.id})
    assert str(caught.value) == (
        f"input number of double: {double.id[:8]} (double) is an artifact of stage double; one of stage number is "
        "needed. Those there are: dpr artifacts --stage number"
    )
    assert nothing_was_started(store, 2)


def test_an_unfinished_input_is_refused(store: Store, toys: dict[str, Stage], make: Make) -> None:
    def fail(config: Any, work: Workspace) -> dict[str, float]:
        raise DensePathError("no luck")

    with pytest.raises(DensePathError):
        run_stage(with_body(toys["number"], fail), toys["number"].config(), {}, store=store)
    failed = store.records()[0].id
    with pytest.raises(UsageError, match=r"never finished \(its status is FAILED\).*dpr rerun"):
        make("double", {"number": failed})


def test_a_damaged_input_is_refused(store: Store, make: Make) -> None:
    number = make("number")
    (store.fetch(number.id).path / "weights.bin").write_bytes(b"")
    with pytest.raises(DensePathError, match=r"input number of double: artifact .* is damaged: weights\.bin: 0 bytes"):
        make("double", {"number": number.id})
    assert nothing_was_started(store, 1)


def test_an_unknown_input_is_refused(store: Store, make: Make) -> None:
    with pytest.raises(UsageError, match="input number of double: there is no artifact 'abcdef'"):
        make("double", {"number": "abcdef"})


def test_a_stage_may_take_any_number_of_roles(store: Store, toys: dict[str, Stage], make: Make) -> None:
    anything = dataclasses.replace(toys["add"], inputs={"*": ("number",)}, optional=frozenset())
    numbers = {f"row {i}": make("number", value=i).id for i in (1, 2, 3)}
    outcome = run_stage(anything, anything.config(), numbers, store=store)
    assert value_of(store, outcome.id) == 6
    with pytest.raises(UsageError, match="one of stage number is needed"):
        run_stage(anything, anything.config(), {"row 1": outcome.id}, store=store)


# Failing


def failing(error: BaseException) -> Callable[[Any, Workspace], dict[str, float]]:
    def body(config: Any, work: Workspace) -> dict[str, float]:
        work.metrics({"loss": 2.0}, 0)
        (work.output / "half.bin").write_bytes(b"half")
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DensePathError("no luck"), "FAILED"),
        (ZeroDivisionError("oh"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(3), "KILLED"),
    ],
)
def test_a_failing_body_leaves_nothing_to_reuse(
    store: Store, toys: dict[str, Stage], make: Make, error: BaseException, status: str
) -> None:
    with pytest.raises(type(error)):
        run_stage(with_body(toys["number"], failing(error)), toys["number"].config(), {}, store=store)
    [record] = store.records()
    assert (record.status, record.digest) == (status, None)
    assert record.reason == f"{type(error).__name__}: {error}"
    assert store.metrics(record.id) == {"loss": 2.0}
    assert store.finished(record.key) == []
    assert list((store.home / "work").iterdir()) == []
    assert make("number").status == "ran"


class RustError(Exception):
    """As safetensors raises it."""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RustError("I/O error: No space left on device (os error 28)"),
        RustError("I/O error: File too large (os error 27)"),
    ],
)
def test_a_full_disk_is_named(store: Store, toys: dict[str, Stage], error: Exception) -> None:
    with pytest.raises(DensePathError, match=f"no space left in {store.home}; free some"):
        run_stage(with_body(toys["number"], failing(error)), toys["number"].config(), {}, store=store)
    assert store.records()[0].status == "FAILED"


def test_a_full_disk_while_publishing_leaves_nothing_to_reuse(
    store: Store, monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    def full(directory: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    move = tasks.artifacts.stage_run._move
    monkeypatch.setattr(tasks.artifacts.stage_run, "_move", full)
    with pytest.raises(DensePathError, match="no space left in"):
        make("number")
    monkeypatch.setattr(tasks.artifacts.stage_run, "_move", move)
    assert store.records()[0].status == "FAILED"
    assert make("number").status == "ran"


def test_an_empty_payload_is_no_artifact(store: Store, toys: dict[str, Stage]) -> None:
    with pytest.raises(DensePathError, match="number wrote nothing into its output"):
        run_stage(with_body(toys["number"], lambda config, work: {}), toys["number"].config(), {}, store=store)


def test_a_failure_is_told_even_if_the_store_is_gone(
    store: Store, toys: dict[str, Stage], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(self: Any, status: str, reason: str = "", **_: bool) -> None:
        raise DensePathError("the store is gone")

    monkeypatch.setattr("tasks.artifacts.stage_run.StageRun.end", gone)
    with pytest.raises(ZeroDivisionError):
        run_stage(with_body(toys["number"], failing(ZeroDivisionError())), toys["number"].config(), {}, store=store)
    assert "could not be marked as FAILED: the store is gone" in caplog.text


# Other processes

CHILD = """
import os, runpy, sys, time
from pathlib import Path
from tasks.run_stage import run_stage
from tasks.artifacts.store import Store
import tasks.artifacts.stage_run
toys = runpy.run_path("tests/tasks/conftest.py")
hook, store = sys.argv[1], Store.open()

def die(*args, **kwargs):
    os.kill(os.getpid(), 9)

def sleep(config, work):
    Path(work.store.home / "ready").touch()
    time.sleep(60)

def slow(config, work):
    time.sleep(0.5)
    return toys["number_body"](config, work)

stage = toys["NUMBER"]
if hook == "during files":
    def half(directory, target):
        target.mkdir(parents=True)
        (target / "weights.bin").write_bytes(b"half")
        die()
    tasks.artifacts.stage_run._move = half
elif hook == "before digest":
    original = store._client._mlflow.set_tag
    store._client._mlflow.set_tag = lambda run, key, value: die() if key == "dpr.digest" else original(run, key, value)
elif hook == "before status":
    store._client._mlflow.set_terminated = die
elif hook == "asleep":
    object.__setattr__(stage, "body", sleep)
elif hook == "slow":
    object.__setattr__(stage, "body", slow)
outcome = run_stage(stage, stage.config(), {}, store=store)
print(outcome.id, outcome.status)
"""


def child(hook: str) -> Forked:
    return Forked(["-c", CHILD, hook], os.environ, REPOSITORY)


@pytest.mark.parametrize("hook", ["during files", "before digest", "before status"])
def test_killed_while_publishing_is_never_taken_for_finished(store: Store, make: Make, hook: str) -> None:
    process = child(hook)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    [killed] = store.records()
    assert (killed.status, killed.finished) == ("RUNNING", False)
    assert store.finished(killed.key) == []
    with pytest.raises(UsageError, match="never finished"):
        store.fetch(killed.id)
    outcome = make("number")
    assert (outcome.status, outcome.id) == ("ran", killed.id)
    results = store._client.get_metric_history(outcome.id, "value")
    assert {metric.step for metric in results} == {2}, "results are metrics of the last step, whoever logs them"
    assert store.verify(outcome.id) == []
    assert len(store.records()) == 1
    assert list((store.home / "work").iterdir()) == []


def test_sigterm_ends_the_attempt_as_killed(store: Store, make: Make) -> None:
    process = child("asleep")
    while not (store.home / "ready").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert "terminated by SIGTERM" in process.communicate(timeout=60)[1]
    [record] = store.records()
    assert (record.status, record.reason) == ("KILLED", "Terminated: terminated by SIGTERM")
    assert list((store.home / "work").iterdir()) == []


def test_two_processes_do_the_same_work_once(store: Store) -> None:
    ended = [process.communicate(timeout=60)[0].split() for process in [child("slow"), child("slow")]]
    assert sorted(status for _, status in ended) == ["ran", "reused"]
    assert {run_id for run_id, _ in ended} == {store.records()[0].id}
    assert len(store.records()) == 1


def test_an_attempt_of_another_machine_is_left_alone(
    store: Store, toys: dict[str, Stage], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = store.record(make("number").id).key
    monkeypatch.setattr(store, "_owner", "elsewhere:/home")
    config = toys["number"].config()
    other = store.begin(
        stage="number", name="number", version=1, key=key, config=config, inputs={}, parent=None, description=""
    )
    monkeypatch.undo()
    make("number", force=True)
    assert store.record(other.id).status == "RUNNING"


def test_what_another_machine_left_here_is_not_taken_up(
    store: Store, toys: dict[str, Stage], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder may have been copied while it still works."""
    process = child("before digest")
    process.communicate(timeout=60)
    [killed] = store.records()
    for each in (store, store.turns):
        monkeypatch.setattr(each, "_owner", "another")
    assert make("number").id != killed.id
    assert store.record(killed.id).status == "RUNNING"


def test_a_home_keeps_its_name(store: Store) -> None:
    assert len(store._owner) == 32
    assert Store.open()._owner == store._owner


# Locks and signals


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with exclusive(tmp_path / "lock", lambda: order.append("second waits")):
            order.append("second")

    with exclusive(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        while not order:
            time.sleep(0.001)
        order.append("first")
    thread.join()
    assert order == ["second waits", "first", "second"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_termination_becomes_an_exception_once(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)
    seen: list[str] = []
    try:
        with graceful_shutdown():
            try:
                os.kill(os.getpid(), number)
                time.sleep(5)
            finally:
                os.kill(os.getpid(), number)
                seen.append("cleaned up")
    except Terminated as terminated:
        seen.append(str(terminated))
    assert seen == ["cleaned up", f"terminated by {number.name}"]
    assert signal.signal(number, before) is signal.SIG_DFL


def test_what_was_ignored_stays_so_in_a_stage() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with graceful_shutdown():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_handler_of_others_stays_in_charge() -> None:
    called: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: called.append(number))
    try:
        with graceful_shutdown():
            os.kill(os.getpid(), signal.SIGTERM)
            called.append(0)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert called == [signal.SIGTERM, 0]


def test_a_stage_runs_in_another_thread(store: Store, make: Make) -> None:
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(make("number")))
    thread.start()
    thread.join()
    assert outcomes[0].status == "ran"


def test_a_twin_stands_in_for_a_damaged_artifact(store: Store, make: Make) -> None:
    first = make("number")
    damaged = next(path for path in store.fetch(first.id).path.rglob("*") if path.is_file())
    damaged.write_text("something else entirely")
    with pytest.raises(DensePathError, match=f"{damaged.name}.*\n.*rerun {first.id[:8]} --force"):
        store.fetch(first.id)
    again = make("number", force=True)
    assert again.id != first.id
    assert store.fetch(first.id).id == again.id
    assert store.verify(first.id), "the damage is still told"


# Time limits


class Slow(StageConfig):
    execution: ExecutionConfig = ExecutionConfig()


def slowly(config: Any, work: Workspace) -> dict[str, float]:
    """Its time is over in the second of three steps: the clock rings as it would."""
    before = (work.restore() or {"step": 0})["step"]
    for step in range(before + 1, 4):
        work.checkpoint(step, lambda: {"step": step})  # noqa: B023
        if step == 1:
            signal.raise_signal(signal.SIGALRM)
    write(work, 1)
    return {"before": before}


def test_a_stage_whose_time_is_over_keeps_its_state_and_says_how_to_go_on(store: Store, toys: dict[str, Stage]) -> None:
    stage = dataclasses.replace(toys["number"], config=Slow, body=slowly)
    limited = Slow(execution=ExecutionConfig(timeout_minutes=90))
    with pytest.raises(DensePathError, match=r"number: its execution.timeout_minutes=90 are over. What is done is"):
        run_stage(stage, limited, {}, store=store)
    [record] = store.records()
    assert record.status == "FAILED"
    outcome = run_stage(stage, Slow(), {}, store=store)
    assert (outcome.id, outcome.why) == (record.id, RESUMED)
    assert outcome.metrics["before"] == 2


def test_a_stage_that_keeps_no_state_does_not_say_that_it_does(store: Store, toys: dict[str, Stage]) -> None:
    def stateless(config: Any, work: Workspace) -> dict[str, float]:
        signal.raise_signal(signal.SIGALRM)
        work.advance(1, 2)
        raise AssertionError

    stage = dataclasses.replace(toys["number"], config=Slow, body=stateless)
    with pytest.raises(DensePathError, match="are over. The same command begins it again; with another value"):
        run_stage(stage, Slow(execution=ExecutionConfig(timeout_minutes=90)), {}, store=store)


def test_a_limit_that_is_over_when_the_work_is_done_does_no_harm() -> None:
    with graceful_shutdown() as shutdown:
        shutdown.safe_point()
        with shutdown.time_limit(0.01):
            while not shutdown.requested:
                time.sleep(0.001)
        assert not shutdown.requested
        with pytest.raises(TimedOut), shutdown.time_limit(0.01):
            deque(iter(shutdown.safe_point, "never"), maxlen=0)
