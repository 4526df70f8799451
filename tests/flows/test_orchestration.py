"""Flows whose Prefect server goes away, and flow runs that are cancelled while nobody tells their process."""

import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from prefect.client.schemas.objects import StateType

from flows import embedded, orchestration
from tasks.artifacts.store import Store
from tasks.prefect_task import Observed
from tasks.running import shutdown

pytestmark = pytest.mark.integration

TINY = Path(__file__).with_name("tiny.yaml")


@pytest.fixture(autouse=True)
def nothing_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Observed, "lost", False)


@pytest.mark.usefixtures("prefect_here")
def test_a_flow_whose_end_cannot_be_told_comes_to_what_its_body_came_to(monkeypatch: pytest.MonkeyPatch) -> None:
    @orchestration.body
    def work(value: int) -> dict[str, int]:
        return {"value": value}

    @orchestration.flow(name="short")
    def short(value: int) -> dict[str, int]:
        work(value)
        raise httpx.ConnectError("Connection refused")

    def never() -> dict[str, int]:
        raise AssertionError("it is done already")

    assert orchestration.run_flow(lambda: short(3), never) == {"value": 3}
    assert Observed.lost


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """No waiting; the signals that have arrived."""
    monkeypatch.setattr(orchestration, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(orchestration, "GRACE_SECONDS", 0.03)
    shutdown.requested.clear()  # by a test of signals before this one
    arrived: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: arrived.append(number))
    yield arrived
    signal.signal(signal.SIGTERM, before)
    shutdown.requested.clear()


def test_a_cancelled_flow_run_ends_though_its_server_was_away_for_a_while(at_once: list[int]) -> None:
    said: list[StateType | None] = [StateType.RUNNING, None, None, StateType.CANCELLING]
    flow_run = uuid.uuid4()

    def state_of(asked: uuid.UUID) -> StateType | None:
        assert asked == flow_run
        return said.pop(0) if len(said) > 1 else said[0]

    orchestration.end_when_cancelled(flow_run, threading.Event(), state_of)
    assert at_once == [signal.SIGTERM]
    assert flow_run in orchestration._CANCELLED


def test_what_was_taken_for_crashed_or_scheduled_again_while_the_server_was_away_is_running(
    at_once: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [StateType.RUNNING, StateType.CRASHED, StateType.SCHEDULED]
    states: list[StateType] = []
    monkeypatch.setattr(orchestration, "_set_state", lambda flow_run, state: states.append(state.type))
    orchestration.end_when_cancelled(
        uuid.uuid4(), threading.Event(), lambda flow_run: said.pop(0) if said else StateType.CANCELLING
    )
    assert states == [StateType.RUNNING, StateType.RUNNING]
    assert at_once == [signal.SIGTERM]


def test_what_its_worker_ends_is_not_told_a_second_time(at_once: list[int]) -> None:
    """A second signal would not wait for the next safe point."""
    shutdown.requested.set()
    done = threading.Event()
    threading.Timer(0.2, done.set).start()
    orchestration.end_when_cancelled(uuid.uuid4(), done, lambda flow_run: StateType.CANCELLED)
    assert at_once == []


def test_a_temporary_server_that_does_not_start_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import PREFECT_API_URL, temporary_settings

    def fails(server: SubprocessASGIServer) -> None:
        raise RuntimeError("Timed out while attempting to connect to ephemeral Prefect API server.")

    # The one instance is the tests' own server.
    monkeypatch.setattr(SubprocessASGIServer, "_instances", {})
    monkeypatch.setattr(SubprocessASGIServer, "start", fails)
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        embedded.start_server()
    assert Observed.lost


def test_a_temporary_server_starts_while_what_the_run_needs_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    imported, answers = threading.Event(), threading.Event()
    monkeypatch.setattr(embedded, "start_server", lambda: imported.wait(30) and answers.set())
    with embedded.starting_server():
        assert not answers.is_set()
        imported.set()
    assert answers.is_set()
    with pytest.raises(KeyboardInterrupt), embedded.starting_server():
        raise KeyboardInterrupt


def server_of(process: "subprocess.Popen[str]") -> psutil.Process | None:
    """The temporary server that a command has started."""
    for child in psutil.Process(process.pid).children():
        if "prefect.server.api.server:create_app" in child.cmdline():
            return child
    return None


def heeding_signals() -> None:
    """Whatever started the tests: `nohup` has its children ignore SIGHUP, a shell's background SIGINT."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def running(environment: dict[str, str], until: str, *arguments: object) -> "tuple[subprocess.Popen[str], list[str]]":
    """A command that has come to a line on its stderr, and the lines until then."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heeding_signals,
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if re.match(until, line):
            return process, lines
    raise AssertionError("".join(lines))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["backbone: runs", "answer SFT", "report: runs"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_the_temporary_server_may_die_or_hang_at_any_moment(
    moment: str, how: signal.Signals, tmp_path: Path, process_environment: Callable[..., dict[str, str]]
) -> None:
    environment = process_environment(tmp_path / "home", PREFECT_API_REQUEST_TIMEOUT="5")
    process, lines = running(environment, moment, "run", TINY)
    server = server_of(process)
    assert server is not None
    server.send_signal(how)
    out, said = process.communicate(timeout=120)
    lines += said.splitlines(keepends=True)
    assert process.returncode == 0, lines
    assert "extrapolated" in out
    assert len([line for line in lines if "Prefect" in line or "prefect" in line]) == 1, lines
    assert sum(map(len, lines)) < 4000
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_signals_keep_the_state_and_are_alike_on_run_rerun_and_resume(
    tmp_path: Path, process_environment: Callable[..., dict[str, str]], open_store: Callable[[Path], Store]
) -> None:
    environment = process_environment(tmp_path / "home")
    store = open_store(tmp_path / "home")
    kept: list[int] = []

    def interrupted(number: signal.Signals, *arguments: object) -> None:
        process, _ = running(environment, r"backbone: \d+ of", *arguments)
        os.kill(process.pid, number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130, said
        last = said.splitlines()[-1]
        assert last == "interrupted; nothing unfinished will be taken for whole; go on with: dpr resume"
        [record] = store.records("backbone")
        assert record.status == "KILLED"
        states = (store.home / "work" / record.key / "states").iterdir()
        kept.append(max(int(state.name) for state in states))

    endless = ["--set", "backbone.teach_max_steps=1000000", "--set", "backbone.probe_every=1000000"]
    interrupted(signal.SIGHUP, "run", TINY, *endless)
    interrupted(signal.SIGTERM, "resume")
    interrupted(signal.SIGINT, "rerun", store.records("backbone")[0].id)
    assert kept == sorted(set(kept)), "each goes on from what the one before has kept"
