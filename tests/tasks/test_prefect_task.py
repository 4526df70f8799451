"""Work that Prefect is told of, and a Prefect that is lost at every moment."""

import logging
import queue
import signal
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import httpx
import pytest
from prefect.exceptions import TerminationSignal
from prefect.settings import PREFECT_API_URL, temporary_settings

import tasks.prefect_task
from dpr_core.errors import DensePathError
from tasks.prefect_task import Observed, lose
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
