"""Work that Prefect is told of, and a Prefect that is lost at every moment."""

import logging
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, Literal

import httpx
import pytest
from prefect.exceptions import ObjectNotFound, TerminationSignal
from prefect.settings import PREFECT_API_URL, temporary_settings

import tasks.prefect_task
from dpr_core.config.base import StageConfig
from dpr_core.config.evaluation import JudgeConfig
from dpr_core.errors import DensePathError
from dpr_core.evaluation.budget import BudgetReachedError
from tasks.prefect_task import Observed, Watch, final_state, lose, watched
from tasks.run_stage import Outcome, StageJob
from tasks.running.observer import OBSERVER
from tasks.running.shutdown import Terminated

REFUSED = httpx.ConnectError("[Errno 111] Connection refused")


@pytest.fixture(autouse=True)
def a_server_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A process in its place, and one service with things to send; what was done to the process."""
    done: list[str] = []
    process = SimpleNamespace(kill=lambda: done.append("killed"))
    monkeypatch.setattr(Observed, "lost", False)
    monkeypatch.setattr(tasks.prefect_task, "SubprocessASGIServer", lambda: SimpleNamespace(server_process=process))
    monkeypatch.setattr("prefect._internal.concurrency.services._active_services", set())
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        yield done


def lost_after(work: Observed[str]) -> Callable[[], None]:
    """A Prefect run that fails once the work is over."""

    def run() -> None:
        try:
            work("argument")
        finally:
            raise REFUSED

    return run


def never() -> str:
    raise AssertionError("the work is not to be done a second time")


def test_finished_work_is_finished_whatever_prefect_says(caplog: pytest.LogCaptureFixture) -> None:
    work = Observed(lambda argument: f"made of {argument}")
    with caplog.at_level(logging.WARNING, "dense_path"):
        assert work.within(lost_after(work), never) == "made of argument"
        again = Observed(lambda: "more")
        assert again.within(never, lambda: "more") == "more", "a server that is lost is not asked again"
    [warning] = caplog.messages
    assert warning.startswith("Prefect's server is gone ([Errno 111] Connection refused).")


@pytest.mark.parametrize("error", [DensePathError("the real reason"), KeyboardInterrupt()])
def test_what_the_work_raised_is_raised_and_not_that_prefect_could_not_be_told(error: BaseException) -> None:
    def fails(argument: str) -> str:
        raise error

    work = Observed(fails)
    with pytest.raises(type(error)) as raised:
        work.within(lost_after(work), never)
    assert raised.value is error


def test_prefects_own_signal_is_a_termination() -> None:
    def terminated(argument: str) -> str:
        raise TerminationSignal(signal=signal.SIGTERM)

    work = Observed(terminated)
    with pytest.raises(Terminated, match="terminated by SIGTERM"):
        work.within(lost_after(work), never)


def refused() -> None:
    raise REFUSED


def test_where_the_temporary_server_is_lost_before_the_work_begins_it_is_done_without() -> None:
    assert Observed(never).within(refused, lambda: "made alone") == "made alone"


def test_a_server_that_is_named_and_away_is_told_before_anything_begins() -> None:
    with (
        temporary_settings({PREFECT_API_URL: "http://me:planted-password@prefect:4200/api"}),
        pytest.raises(DensePathError, match=r"PREFECT_API_URL: the Prefect server at http://me:\*{3}@prefect:4200/api"),
    ):
        Observed(never).within(refused, never)
    assert not Observed.lost


def test_an_error_that_is_no_loss_is_raised() -> None:
    def wrong() -> None:
        raise TypeError("no such parameter")

    with pytest.raises(TypeError):
        Observed(never).within(wrong, never)


def test_a_lost_server_is_sent_nothing_more(monkeypatch: pytest.MonkeyPatch, a_server_of_its_own: list[str]) -> None:
    events: queue.Queue[str] = queue.Queue()
    events.put("a stage has ended")
    monkeypatch.setattr("prefect._internal.concurrency.services._active_services", [SimpleNamespace(_queue=events)])
    lose(REFUSED)
    assert events.empty()
    assert a_server_of_its_own == ["killed"]


# What Prefect shows of a stage

JOB = StageJob("reinforce", "DPR", StageConfig(), {}, "parent")
GUARDED = {"guard/stopped_at_iteration": 7.0, "guard/kept_iteration": 5.0}


def outcome(status: Literal["ran", "reused"] = "ran", why: str = "gamma is 1", **metrics: float) -> Outcome:
    return Outcome("reinforce", "DPR", "id", status, 3.2, {**GUARDED, **metrics}, why)


def test_the_state_of_a_task_says_what_was_reused_or_made_and_why() -> None:
    reused = final_state(outcome("reused", "nothing changed since noon"))
    assert (reused.name, reused.message) == ("Reused", "id reused: nothing changed since noon")
    made = final_state(outcome())
    assert (made.name, made.message) == ("Ran", "id made in 3 s, because: gamma is 1")
    assert reused.is_completed()
    assert made.is_completed()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """The events that were sent within a flow run."""
    events: list[tuple[str, Any]] = []
    monkeypatch.setattr(tasks.prefect_task, "FlowRunContext", SimpleNamespace(get=lambda: "a flow run"))
    monkeypatch.setattr(
        tasks.prefect_task, "Store", SimpleNamespace(open=lambda: SimpleNamespace(run_url="/{}".format))
    )
    monkeypatch.setattr(tasks.prefect_task, "emit_event", lambda name, **given: events.append((name, given)))
    return events


def spent(job: StageJob) -> Outcome:
    error = BudgetReachedError("$5 is spent")
    error.run = "the judge's"
    raise error


def test_a_guard_that_stopped_and_a_budget_that_is_spent_are_events(told: list[tuple[str, Any]]) -> None:
    assert watched(JOB, lambda job: outcome()) == outcome()
    watched(JOB, lambda job: outcome("reused"))
    watched(JOB, lambda job: outcome(why=""))  # another flow run made it, and told of it
    with pytest.raises(BudgetReachedError):
        watched(JOB, spent)
    (stopped, guard), (over, budget) = told
    assert (stopped, over) == ("dense-path.guard.stopped", "dense-path.budget.spent")
    assert guard["resource"]["prefect.resource.id"] == "mlflow.run.id"
    assert (guard["payload"]["stopped_at_iteration"], guard["payload"]["kept_iteration"]) == (7, 5)
    assert (budget["payload"]["url"], budget["payload"]["why"]) == ("/the judge's", "$5 is spent")


def test_what_cannot_be_told_is_no_loss(told: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.prefect_task, "emit_event", lambda name, **given: refused())
    assert watched(JOB, lambda job: outcome()) == outcome()
    monkeypatch.setattr(Observed, "lost", True)
    monkeypatch.setattr(tasks.prefect_task, "emit_event", never)
    assert watched(JOB, lambda job: outcome()) == outcome()


def long(job: StageJob) -> Outcome:
    """A stage that is far enough to be shown."""
    OBSERVER.get().progress(1, 4, "return 0.1")
    OBSERVER.get().progress(2, 4, "return 0.2")
    return outcome()


@pytest.mark.usefixtures("told")
def test_a_long_stage_has_a_progress_bar_and_a_server_that_hangs_delays_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[tuple[float, str]] = []
    monkeypatch.setattr(tasks.prefect_task, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(tasks.prefect_task, "create_progress_artifact", lambda percent, key, description: key)
    update = lambda artifact, percent, said: shown.append((percent, said))  # noqa: E731
    monkeypatch.setattr(tasks.prefect_task, "update_progress_artifact", update)
    watched(JOB, long)
    assert shown[-1] == (50, "DPR: 2 of 4, return 0.2")
    hung = threading.Event()

    def hang(*given: Any, **named: Any) -> None:
        hung.wait(30)
        refused()  # what came next would be asked of a real server, once this test is over

    monkeypatch.setattr(tasks.prefect_task, "create_progress_artifact", hang)
    monkeypatch.setattr(tasks.prefect_task, "GOODBYE_SECONDS", 0.01)
    began = time.monotonic()
    assert watched(JOB, long) == outcome()
    assert time.monotonic() - began < 10
    hung.set()


@pytest.mark.parametrize("error", [REFUSED, ObjectNotFound(Exception("no such limit"))])
def test_a_limit_that_is_not_there_holds_nobody_up(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**settings: Any) -> None:
        raise error

    monkeypatch.setattr(tasks.prefect_task, "get_client", fails)
    paid = JudgeConfig()
    with temporary_settings({PREFECT_API_URL: "http://prefect:4200/api"}):
        with Watch("judge").turn("judge", paid):
            pass
        with pytest.raises(ZeroDivisionError), Watch("judge").turn("judge", paid):
            raise ZeroDivisionError


def test_a_turn_is_waited_for_as_long_as_it_is_wanted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It no longer is, say, by a thread whose process Ctrl-C has ended."""
    taken = iter([2, 2, 1, 1])
    took: list[str] = []

    @contextmanager
    def concurrency(limit: str, **settings: Any) -> Iterator[None]:
        took.append("too late" if not took else limit)
        if len(took) == 1:
            raise TimeoutError
        yield
        took.append("over")

    def read(limit: str) -> Any:
        return SimpleNamespace(active=True, limit=2, active_slots=next(taken, 2))

    client = SimpleNamespace(read_global_concurrency_limit_by_name=read)
    monkeypatch.setattr(tasks.prefect_task, "get_client", lambda **settings: nullcontext(client))
    monkeypatch.setattr(tasks.prefect_task, "TURN_SECONDS", 0.0)
    monkeypatch.setattr("prefect.concurrency.sync.concurrency", concurrency)
    still_wanted = iter([True, True, False])
    with (
        temporary_settings({PREFECT_API_URL: "http://prefect:4200/api"}),
        caplog.at_level(logging.INFO, "dense_path"),
    ):
        with Watch("my judge").turn("judge", JudgeConfig()):
            assert took == ["too late", "judging"]
        with Watch("another").turn("judge", JudgeConfig(), lambda: next(still_wanted)):
            pass
    assert took == ["too late", "judging", "over"]
    assert caplog.messages == [
        f"{judge} waits for its turn: Prefect's limit judging is full" for judge in ("my judge", "another")
    ]
