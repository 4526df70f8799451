"""The controller of a stage that several ranks run: it starts them, shows what rank 0 tells, and says how they fail."""

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging import getLogger
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO

from dpr_core.config.execution import ExecutionConfig, LaunchConfig
from dpr_core.cores import usable_cores
from dpr_core.errors import DensePathError, UsageError
from dpr_core.text import escape_control
from tasks.artifacts.store import Store
from tasks.launch.child_processes import environment, how_it_ended
from tasks.local_home import DiskFullError, disk_full_error
from tasks.run_stage import Outcome, StageJob
from tasks.running.shutdown import Shutdown
from tasks.running.workspace import Progress

POLL_SECONDS = 0.1

EXIT_SECONDS = 10.0
"""How long rank 0 has once more to end by itself, where nobody waits for it any longer."""

NOTICED_SECONDS = 2.0
"""Within this torch's agent notices that a rank is dead, in whole seconds. Others may have failed for want of it."""

LAST_LINES = 12

AGENTS = {"processes": "tasks.launch.agent", "ray": "tasks.launch.ray_train"}


def run_ranks(
    job: StageJob, launch: LaunchConfig, store: Store, progress: Progress | None, shutdown: Shutdown
) -> Outcome:
    """Have the stage done by several ranks, of which rank 0 owns it; `tasks/launch/worker.py` is each of them."""
    with tempfile.TemporaryDirectory(prefix="dpr-ranks-") as private, _started(job, launch, Path(private)) as agent:
        return _Ranks(job, launch, store, progress, shutdown, Path(private), agent).watch()


@contextmanager
def _started(job: StageJob, launch: LaunchConfig, folder: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """In a session of its own: Ctrl-C is for this process, which tells rank 0. Where it is not waited for to its end,
    the kernel ends all of them with the agent."""
    _leave_the_gpu()
    (folder / "job.json").write_text(job.to_json(), encoding="utf-8")
    (folder / "told").touch()
    command = [sys.executable, "-P", "-m", AGENTS[launch.engine], os.getpid(), folder, launch.processes]
    with (folder / "agent.log").open("wb") as log:
        agent = subprocess.Popen(
            [*map(str, command), str(folder / "job.json")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=ranks_environment(job, launch) | {"DPR_TOLD": str(folder / "told")},
            start_new_session=True,
        )
    try:
        yield agent
    finally:
        agent.kill()
        agent.wait()


def ranks_environment(job: StageJob, launch: LaunchConfig) -> dict[str, str]:
    """This process's, without what would have Accelerate do more than ask who it is, and the cores shared out."""
    ours = {name: value for name, value in environment().items() if not name.startswith("ACCELERATE_")}
    execution = getattr(job.config, "execution", None)
    threads = execution.threads if isinstance(execution, ExecutionConfig) else None
    said = ours.get("OMP_NUM_THREADS", "")
    threads = threads or (int(said) if said.isdecimal() else usable_cores() // launch.count)
    return ours | {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": str(max(1, threads))}


def _leave_the_gpu() -> None:
    """What an earlier stage left there for this process would be missing to the first of the others."""
    import torch

    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


class Failure(NamedTuple):
    """How a rank ended."""

    time: float
    rank: int
    status: int
    kind: str | None
    """Of its error; None where it told of none."""
    text: str


def first_failure(failures: dict[str, dict[str, Any]]) -> Failure:
    """Of what torch's agent says of its ranks, that which made the others fail."""
    found = []
    for rank, each in failures.items():
        own = each["error_file_data"]
        when = own.get("time", each["timestamp"])
        if "kind" not in own:  # what is terminated, the agent has as a rule terminated for another's failure
            when += NOTICED_SECONDS if each["exitcode"] == -signal.SIGTERM else -NOTICED_SECONDS
        found.append(Failure(when, int(rank), each["exitcode"], own.get("kind"), own.get("text", "")))
    return min(found)


class _Ranks:
    """The ranks of one stage."""

    def __init__(
        self,
        job: StageJob,
        launch: LaunchConfig,
        store: Store,
        progress: Progress | None,
        shutdown: Shutdown,
        folder: Path,
        agent: "subprocess.Popen[bytes]",
    ) -> None:
        self._job = job
        self._of = f"of its {launch.processes} processes" if launch.processes else "of its processes"
        self._store = store
        self._progress = progress
        self._shutdown = shutdown
        self._folder = folder
        self._agent = agent
        self._first: int | None = None
        """Rank 0, as a process."""
        self._run: str | None = None
        self._outcome: Outcome | None = None
        self._rest = ""
        self._is_told = False

    def watch(self) -> Outcome:
        """Until they have ended."""
        ended = False
        with (self._folder / "told").open(encoding="utf-8") as told:
            try:
                while not ended:
                    ended = self._agent.poll() is not None
                    self._hear(told)
                    self._shutdown.put_off()
                    if self._shutdown.requested and not self._is_told:
                        self._shutdown.hand_over()
                        self._terminate()
                    if not ended:
                        time.sleep(POLL_SECONDS)
            except BaseException:
                self._give_up(told)
                raise
        if self._outcome is not None:
            return self._outcome
        if self._is_told:
            self._end("KILLED", "the ranks were terminated")
            self._shutdown.safe_point()
        self._fail()

    def _terminate(self) -> None:
        self._is_told = True
        if self._first is None:
            self._agent.kill()
        else:
            with suppress(ProcessLookupError):
                os.kill(self._first, signal.SIGTERM)

    def _give_up(self, told: TextIO) -> None:
        """Rank 0 ends its run, if it can do so soon."""
        self._terminate()
        with suppress(subprocess.TimeoutExpired):
            self._agent.wait(EXIT_SECONDS)
        self._hear(told)
        self._end("KILLED", "the ranks were terminated")

    def _hear(self, told: TextIO) -> None:
        *lines, self._rest = (self._rest + told.read()).split("\n")
        for line in lines:
            match json.loads(line):
                case {"pid": pid}:
                    self._first = pid
                case {"run": run}:
                    self._run = run
                case {"log": [name, level, text]}:
                    getLogger(name).log(level, "%s", text)
                case {"advance": how_far} if self._progress is not None:
                    self._progress.advance(*how_far)
                case {"part": part} if self._progress is not None:
                    self._progress.part(*part)
                case {"outcome": outcome}:
                    self._outcome = Outcome(**outcome)

    def _fail(self) -> NoReturn:
        error = self._error()
        error.run = self._run
        self._end("FAILED", f"{type(error).__name__}: {error}", True)
        raise error

    def _error(self) -> DensePathError:
        try:
            failure = first_failure(json.loads((self._folder / "failures.json").read_text(encoding="utf-8")))
        except OSError:
            last = self._last(self._folder / "agent.log")
            what = f"the {self._of.removeprefix('of its ')} could not be started"
            if self._first is not None:
                what = f"what started the {self._of.removeprefix('of its ')} {how_it_ended(self._agent.returncode)}"
            return DensePathError(f"{self._job.name}: {what}{last}")
        match failure.kind:
            case "UsageError":
                return UsageError(failure.text)
            case "DensePathError":
                return DensePathError(failure.text)
            case DiskFullError.__name__:
                return disk_full_error(self._store.home)
        end = how_it_ended(failure.status) if failure.kind is None else f"failed: {failure.kind}: {failure.text}"
        logs = sorted(self._folder.glob(f"logs/*/attempt_0/{failure.rank}/stderr.log"))
        last = self._last(logs[0]) if logs else ""
        return DensePathError(f"{self._job.name}: rank {failure.rank} {self._of} {end}{last}")

    def _end(self, status: str, reason: str, anyway: bool = False) -> None:
        """End the run where rank 0 could not, or with what it does not know; not one that another host is at."""
        if self._run is None:
            return
        with suppress(DensePathError, OSError):
            record = self._store.record(self._run)
            if (anyway or record.status == "RUNNING") and self._store.turns.is_left_to_us(record):
                self._store.end(self._run, status, reason)

    @staticmethod
    def _last(log: Path) -> str:
        """The end of what a process wrote to its standard error, as an addition to a message."""
        with suppress(OSError):
            if lines := log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]:
                return "; its last words:\n" + "\n".join(f"  {escape_control(line)}" for line in lines)
        return ""
