"""Ranks with one home and with several: who tidies up, where states go, and how all end when rank 0 fails."""

import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest

from dpr_core import distributed
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.training import SFTConfig
from dpr_core.errors import UsageError
from tasks.artifacts.retrying import LeaseLostError
from tasks.launch.shared_work import SharedWork, Task
from tasks.running.stage_workdir import StageWorkdir
from tasks.running.together import OtherFailedError, together
from tasks.running.workspace import Workspace
from tests import ranks

pytestmark = [pytest.mark.slow, pytest.mark.integration]

KEY, RUN = "a" * 64, "1" * 32


@dataclass
class Run:
    """What a rank asks of the MLflow run."""

    id: str = RUN
    last_step: int = 0
    is_lost: bool = False
    is_taken: bool = False

    def give_up_if_taken(self) -> None:
        if self.is_taken:
            raise LeaseLostError("another took it over")

    def give_up_if_lost(self) -> None:
        """It is not."""

    def flush(self) -> None:
        """Nothing waits."""


def work_in(home: Path, run: Run | None = None) -> SharedWork:
    """Each rank on a machine of its own."""
    distributed.state()
    os.environ["DPR_HOME"] = str(home)
    socket.gethostname = lambda: f"machine-{distributed.rank()}"
    task, owner = Task("sft", SFTConfig(), {}, RUN, 0, KEY), None
    if distributed.rank() == 0:
        workdir = StageWorkdir(home / "work" / KEY)
        workdir.open(RUN)
        each_step = ExecutionConfig(checkpoint_steps=1)
        owner = Workspace(run or Run(), None, {}, workdir, execution=each_step)  # type: ignore[arg-type]
    return SharedWork(task, owner)


def in_one_home(folder: Path) -> None:
    home = folder / "home"
    work = work_in(home)
    with work.folders():
        assert work.restore() is None
        (work.output / "weights").write_text("all")
        work.checkpoint(1, lambda: {"step": 1})
    assert [path.name for path in (home / "work" / KEY / "output").iterdir()] == ["weights"]
    assert not list((home / "work" / KEY / "scratch").iterdir())
    distributed.all_gather([None])
    again = work_in(home)
    assert again.restore() == {"step": 1}


def test_machines_with_one_home_leave_what_rank_0_made(tmp_path: Path) -> None:
    ranks.run(2, in_one_home, tmp_path)


def in_two_homes(folder: Path) -> None:
    distributed.state()
    first = distributed.rank() == 0
    here = folder / f"home-{min(distributed.rank(), 1)}" / "work" / KEY
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("dense_path").addHandler(handler)
    run = Run()
    work = work_in(here.parents[1], run)
    with work.folders():
        assert not list(work.output.iterdir()), "what an attempt left that was killed is gone"
        assert work.restore() is None
        assert [each for each in logged if "no states are kept" in each] == logged
        assert len(logged) == first
        (work.output / "weights").write_text("all")
        work.checkpoint(1, lambda: {"step": 1})
    distributed.all_gather([None])
    assert here.exists() == first
    assert not list(folder.glob("*/work/*/states/*"))
    distributed.all_gather([None])
    if first:
        with distributed.alone():
            work._workdir.save_state(1, 1, {"step": 1})
    with pytest.raises(UsageError if first else OtherFailedError, match="what was interrupted cannot be gone on with"):
        work_in(here.parents[1]).restore()
    assert (here / "states" / "000000001" / "SEAL.json").exists() == first


def test_machines_with_homes_of_their_own_keep_no_states_unless_in_one_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPR_STATES", "")
    for rank in (1, 2):
        left = tmp_path / "home-1" / "work" / KEY / "scratch" / f"rank-{rank}" / "output"
        left.mkdir(parents=True)
        (left / "weights").write_text("half")
    ranks.run(3, in_two_homes, tmp_path)


def taken_over(folder: Path) -> None:
    work = work_in(folder / "home", Run(is_taken=True))
    work.advance(1, 2)
    kind = LeaseLostError if distributed.rank() == 0 else OtherFailedError
    with pytest.raises(kind, match="another took it over"):
        work.checkpoint(1, lambda: {"step": 1})
    assert together(lambda: None) == [None, None]


def test_a_run_that_another_took_over_ends_all_ranks_at_once(tmp_path: Path) -> None:
    ranks.run(2, taken_over, tmp_path)
