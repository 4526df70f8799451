"""How the processes of one stage are served, without any: their messages are here before they are read."""

import errno
import logging
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

import tasks.launch.launcher
from dpr_core.config.base import StageConfig
from dpr_core.config.execution import LaunchConfig
from dpr_core.errors import DensePathError, UsageError
from tasks.artifacts.store import Store
from tasks.launch.doors import receive, send
from tasks.launch.launcher import _Ranks, _unconfigured
from tasks.launch.worker import kind_of
from tasks.running.stage_workdir import StageWorkdir
from tasks.running.workspace import Workspace


class Ended:
    """A launcher that has seen its processes end."""

    def wait(self, timeout: float) -> int:
        return 1


class Two:
    """Two processes, and what they were answered."""

    def __init__(self, store: Store, folder: Path) -> None:
        run = store.begin(
            stage="number",
            name="n",
            version=1,
            key="a" * 64,
            config=StageConfig(),
            inputs={},
            parent=None,
            description="",
        )
        workdir = StageWorkdir(store.home / "work" / "key")
        workdir.open(run.id)
        (workdir.output / "file").write_text("made by the first")
        self.store, self.run, self.workdir, self.folder = store, run, workdir, folder
        work, launcher = Workspace(run, store, {}, workdir), Ended()
        self.ranks = _Ranks("sft", StageConfig(), LaunchConfig(processes=2), work, folder, launcher, [])  # type: ignore[arg-type]
        self.theirs: list[Connection] = []
        for rank in range(2):
            ours, theirs = Pipe()
            self.ranks._lines[rank] = ours
            self.theirs.append(theirs)
        (folder / "launcher-0.log").write_text("")

    def say(self, rank: int, ask: str, **message: Any) -> None:
        send(self.theirs[rank], ask=ask, **message)

    def both(self, ask: str, **message: Any) -> None:
        for rank in range(2):
            self.say(rank, ask, **message)

    def answers(self, rank: int) -> Iterator[Any]:
        while self.theirs[rank].poll():
            yield receive(self.theirs[rank])["answer"]


@pytest.fixture
def two(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Two:
    monkeypatch.setattr(tasks.launch.launcher, "POLL_SECONDS", 0.1)
    return Two(store, tmp_path)


def test_what_the_first_reports_is_logged_and_what_it_says_is_said_here(
    two: Two, caplog: pytest.LogCaptureFixture
) -> None:
    two.say(0, "metrics", values={"loss": 0.5}, step=3)
    two.say(0, "log", logger="some.library", level=logging.WARNING, text="100% odd")
    two.both("done", metrics={"loss": 0.25})
    assert two.ranks.serve() == {"loss": 0.25}
    two.run.flush()
    assert two.store.metrics(two.run.id) == {"loss": 0.5}
    assert ("some.library", logging.WARNING, "100% odd") in caplog.record_tuples
    assert [list(two.answers(rank)) for rank in range(2)] == [[None], [None]]


def test_a_state_is_sealed_once_all_have_written_and_all_go_on_from_it(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StageWorkdir, "is_due", lambda workdir, step, *every: step == 2)
    two.both("restore")
    two.both("checkpoint", step=1)
    two.both("checkpoint", step=2)
    two.both("written", needed=0)
    two.both("restore")
    two.both("done", metrics={})
    two.ranks.serve()
    place = two.workdir.folder / "states" / "000000002"
    expected = [None, None, f"{place}.new", None, str(place), None]
    assert [list(two.answers(rank)) for rank in range(2)] == [expected, expected]


def test_a_disk_that_is_full_for_one_keeps_no_state_and_ends_nothing(
    two: Two, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(StageWorkdir, "is_due", lambda workdir, step, *every: True)
    two.both("checkpoint", step=1)
    two.say(0, "written", needed=0)
    two.say(1, "written", needed=2500)
    two.both("done", metrics={})
    two.ranks.serve()
    assert "no state could be kept at step 1" in caplog.text
    assert "it needs 2.5 kB" in caplog.text
    assert not two.workdir.is_resumable


@pytest.mark.parametrize("kind", [UsageError, DensePathError])
def test_an_error_for_the_user_is_raised_as_it_is(two: Two, kind: type[DensePathError]) -> None:
    two.say(1, "failed", kind=kind.__name__, text="too long")
    with pytest.raises(DensePathError, match="^too long$") as error:
        two.ranks.serve()
    assert type(error.value) is kind


def test_a_full_disk_is_told_of_as_with_one_process(two: Two) -> None:
    two.say(1, "failed", kind=kind_of(OSError(errno.ENOSPC, "No space left on device")), text="raw")
    with pytest.raises(DensePathError, match="no space left in .*; free some") as raised:
        two.ranks.serve()
    assert "raw" not in str(raised.value)


class SpecialError(UsageError):
    """As a body may raise."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [(SpecialError("x"), "UsageError"), (DensePathError("x"), "DensePathError"), (KeyError("x"), "KeyError")],
)
def test_an_error_goes_by_the_kind_that_its_owner_knows(error: Exception, kind: str) -> None:
    assert kind_of(error) == kind


def test_the_launcher_gets_none_of_accelerates_variables() -> None:
    ours = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "ACCELERATE_USE_FSDP": "true", "PATH": "/bin"}
    assert _unconfigured(ours) == {"PATH": "/bin"}


def test_any_other_error_names_the_process_and_shows_its_last_words(two: Two) -> None:
    (two.folder / "rank-1.log").write_text("Traceback\n  in line 3\n\x1b[31mValueError: odd\n")
    two.say(1, "failed", kind="ValueError", text="odd")
    with pytest.raises(DensePathError) as error:
        two.ranks.serve()
    expected = "sft: rank 1 of its 2 processes failed: ValueError: odd; its last words:\n  Traceback\n    in line 3\n"
    assert str(error.value).startswith(expected)
    assert "\x1b" not in str(error.value)


TORCHS_TABLE = """
Root Cause (first observed failure):
[0]:
  time      : 2030-01-01_00:00:00
  host      : here
  rank      : 0 (local_rank: 0)
  exitcode  : 1 (pid: 10)
  error_file: <N/A>
[1]:
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 11)
"""


@pytest.mark.parametrize(("table", "end"), [(TORCHS_TABLE, "was killed by SIGKILL"), ("", "ended without a word")])
def test_a_process_that_is_gone_is_named_and_not_the_one_that_it_made_fail(two: Two, table: str, end: str) -> None:
    (two.folder / "launcher-0.log").write_text(table)
    two.say(0, "failed", kind="RuntimeError", text="Connection closed by peer")
    two.theirs[1].close()
    with pytest.raises(DensePathError, match=f"^sft: rank 1 of its 2 processes {end}$"):
        two.ranks.serve()


def test_processes_that_are_not_at_the_same_place_are_no_longer_waited_for(two: Two) -> None:
    two.say(0, "checkpoint", step=4)
    two.say(1, "done", metrics={})
    with pytest.raises(DensePathError, match="not at the same place"):
        two.ranks.serve()
