"""Other processes on this machine that make stages, each one at a time."""

import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from multiprocessing.connection import Connection

from dpr_core.config.base import StageConfig
from dpr_core.errors import DensePathError
from tasks.artifacts.store import Store
from tasks.launch.child_processes import environment, how_it_ended
from tasks.registry import stage_named
from tasks.run_stage import Outcome, run_stage
from tasks.running.progress import StageProgress

MOST = 64
"""Processes at once, at the most."""

PATIENCE = 30.0
"""Seconds that a process is given to end its stage as KILLED."""

# Ctrl-C reaches every process of a terminal. Here it counts for the one that knows what to do about all the others.
START = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "from tasks import subprocess_pool; subprocess_pool.main()"
)


@dataclass(frozen=True)
class Job:
    """One stage to be had."""

    stage: str
    name: str
    config: StageConfig
    inputs: Mapping[str, str]
    parent: str | None
    not_before: datetime | None = None
    """What was begun before this moment is not reused."""


def make(job: Job) -> Outcome:
    """Make or reuse it in this process."""
    with StageProgress(job.name) as progress:
        return run_stage(
            stage_named(job.stage),
            job.config,
            job.inputs,
            store=Store.open(patient=True),
            parent=job.parent,
            name=job.name,
            not_before=job.not_before,
            progress=progress,
        )


class Workers:
    """As many processes as there are jobs at once. They end with the block, or with this process."""

    def __init__(self) -> None:
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._guard = threading.Lock()
        self._closed = False

    def make(self, job: Job) -> Outcome:
        """Make or reuse it in a process that has nothing else to do. Waits for it; safe to call from many threads."""
        with self._guard:
            if self._closed:
                raise DensePathError(f"{job.name}: not started, because the run is ending")
            worker = self._idle.pop() if self._idle else _Worker()
            self._busy.add(worker)
        alive = False
        try:
            outcome = worker.make(job)
            alive = True
        except _Gone as gone:
            raise DensePathError(f"{job.name}: the process that made it {gone}") from None
        except DensePathError:
            alive = True
            raise
        finally:
            with self._guard:
                self._busy.discard(worker)
                if alive:
                    self._idle.append(worker)
        return outcome

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        """End them all; a stage at work is ended as KILLED."""
        with self._guard:
            self._closed = True
            workers = [*self._idle, *self._busy]
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.wait()


class _Gone(Exception):
    """The process has ended."""


class _Worker:
    """One process, and the line to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", START, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,
                env=environment(),
            )
        self._line = Connection(ours.detach())

    def make(self, job: Job) -> Outcome:
        try:
            self._line.send(job)
            answer = self._line.recv()
        except (EOFError, OSError):
            raise _Gone(how_it_ended(self.wait())) from None
        if isinstance(answer, DensePathError):
            raise answer
        assert isinstance(answer, Outcome)
        return answer

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()

    def wait(self) -> int:
        try:
            return self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def serve(line: Connection) -> None:
    """Make one job after another until the line is closed."""
    while True:
        try:
            job = line.recv()
        except EOFError:
            return
        answer: Outcome | DensePathError
        try:
            answer = make(job)
        except DensePathError as error:
            answer = error
        except Exception as error:
            answer = DensePathError(f"{type(error).__name__}: {error}")
        line.send(answer)


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("dense_path").setLevel(logging.INFO)
    try:
        serve(Connection(int(sys.argv[1])))
    except (KeyboardInterrupt, BrokenPipeError):
        raise SystemExit(130) from None
