"""How long a silent MLflow is waited for, and which of its errors are worth waiting."""

import sqlite3
from collections.abc import Callable

import pytest

import tasks.artifacts.retrying
from dpr_core.errors import DensePathError, UsageError
from tasks.artifacts.retrying import RetryPolicy, is_transient, retry_seconds


def caused(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(),
        TimeoutError(),
        caused(ValueError("x"), ConnectionResetError()),
        sqlite3.OperationalError("database is locked"),
        Exception("(psycopg.errors.AdminShutdown) terminating connection due to administrator command"),
        Exception("server closed the connection unexpectedly"),
        Exception("FATAL: the database system is starting up"),
        Exception("HTTPConnectionPool(host='h'): Max retries exceeded (ResponseError('too many 503 error responses'))"),
        Exception("Failed to upload /x to b/k: An error occurred (503) when calling the PutObject operation"),
        Exception('Could not connect to the endpoint URL: "http://h/b/k"'),
    ],
)
def test_these_pass(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("RESOURCE_DOES_NOT_EXIST: No Run with id=1 exists"),
        Exception("An error occurred (404) when calling the HeadObject operation: Not Found"),
        Exception("An error occurred (AccessDenied) when calling the PutObject operation: Access Denied"),
        sqlite3.OperationalError("database or disk is full"),
        caused(ConnectionError("x"), OSError(28, "No space left on device")),
        Exception("connection failed: connection refused? no: password authentication failed for user x"),
        Exception("Max retries exceeded (Caused by SSLError: certificate verify failed)"),
        PermissionError(13, "Permission denied"),
    ],
)
def test_these_do_not(error: Exception) -> None:
    assert not is_transient(error)


@pytest.mark.parametrize("setting", ["ten", "-1", "nan", "inf"])
def test_an_impossible_patience_is_refused(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPR_PATIENCE_SECONDS", setting)
    with pytest.raises(UsageError, match=f"DPR_PATIENCE_SECONDS: '{setting}' is no number of seconds"):
        retry_seconds()


def test_patience_is_ten_minutes_or_as_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DPR_PATIENCE_SECONDS", raising=False)
    assert retry_seconds() == 600
    monkeypatch.setenv("DPR_PATIENCE_SECONDS", " 2.5 ")
    assert retry_seconds() == 2.5


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(tasks.artifacts.retrying, "time", clock)
    return clock


def refusing(clock: Clock, until: float) -> Callable[[], str]:
    def call() -> str:
        if clock.now < until:
            raise ConnectionRefusedError("Connection refused")
        return "answer"

    return call


def patience(seconds: float) -> RetryPolicy:
    return RetryPolicy("http://mlflow", seconds, lambda: None, str)


def test_an_answer_is_waited_for_with_growing_pauses(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    assert patience(600).call(refusing(clock, 160)) == "answer"
    assert clock.slept[:6] == [0.25, 0.5, 1, 2, 4, 8]
    assert set(clock.slept[6:]) == {10.0}
    assert 160 <= clock.now < 170
    away, back = caplog.messages
    assert away == (
        "MLflow at http://mlflow does not answer (Connection refused); it is tried again for up to 600 s, "
        "and nothing is lost meanwhile"
    )
    assert back.startswith("MLflow at http://mlflow answers again, after 6")


def test_after_the_set_time_it_is_given_up_and_then_asked_once_at_a_time(clock: Clock) -> None:
    patient = patience(30)
    with pytest.raises(DensePathError, match=r"has not answered for 30 s \(Connection refused\); .* the same command"):
        patient.call(refusing(clock, 1000))
    assert clock.now == 130
    assert patient.exhausted
    with pytest.raises(DensePathError):
        patient.call(refusing(clock, 1000))
    assert clock.now == 130
    clock.now = 1000
    assert patient.call(refusing(clock, 1000)) == "answer"
    assert not patient.exhausted


def test_what_cannot_pass_is_not_waited_for(clock: Clock) -> None:
    def call() -> None:
        raise ValueError("INVALID_PARAMETER_VALUE")

    with pytest.raises(ValueError, match="INVALID"):
        patience(600).call(call)
    assert clock.slept == []
