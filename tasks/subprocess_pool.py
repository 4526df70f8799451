"""A pool of subprocesses on this machine, each of which runs one stage at a time."""

import logging
import socket
import subprocess
import sys
import threading
from multiprocessing.connection import Connection

from dpr_core.errors import DensePathError
from dpr_core.redaction import redact_logs
from tasks.launch.child_processes import environment, how_it_ended
from tasks.run_stage import Outcome, StageJob, run_job

STOP_SECONDS = 30.0
"""How long a process has to end its stage as KILLED."""

# Ctrl-C and the end of a terminal reach all its processes, and count for the one that knows what to do about the rest.
START = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    "from tasks import subprocess_pool; subprocess_pool.main()"
)


class SubprocessPool:
    """As many processes as there are jobs at once, at most `jobs`, which share the cores. They end with the block, or
    with this process."""

    def __init__(self, jobs: int = 1) -> None:
        self._jobs = jobs
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._guard = threading.Lock()
        self._closed = False

    def run(self, job: StageJob) -> Outcome:
        """Run or reuse a stage in an idle process. Waits for it; safe to call from many threads."""
        with self._guard:
            if self._closed:
                raise DensePathError(f"{job.name}: not started, because the run is ending")
            worker = self._idle.pop() if self._idle else _Worker(self._jobs)
            self._busy.add(worker)
        alive = False
        try:
            outcome = worker.run(job)
            alive = True
        except _ProcessEndedError as error:
            raise DensePathError(f"{job.name}: the process that made it {error}") from None
        except DensePathError:
            alive = True
            raise
        finally:
            with self._guard:
                self._busy.discard(worker)
                if alive:
                    self._idle.append(worker)
        return outcome

    def __enter__(self) -> "SubprocessPool":
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


class _ProcessEndedError(Exception):
    """The process has ended."""


class _Worker:
    """One process, and the connection to it."""

    def __init__(self, sharing: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", START, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,
                env=environment(sharing),
            )
        self._connection = Connection(ours.detach())

    def run(self, job: StageJob) -> Outcome:
        try:
            self._connection.send(job)
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise _ProcessEndedError(how_it_ended(self.wait())) from None
        if isinstance(answer, DensePathError):
            raise answer
        assert isinstance(answer, Outcome)
        return answer

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()

    def wait(self) -> int:
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def serve(connection: Connection) -> None:
    """Run one job after another until the connection is closed."""
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        answer: Outcome | DensePathError
        try:
            answer = run_job(job)
        except DensePathError as error:
            answer = error
        except Exception as error:
            answer = DensePathError(f"{type(error).__name__}: {error}")
        connection.send(answer)


def main() -> None:
    redact_logs()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("dense_path").setLevel(logging.INFO)
    try:
        serve(Connection(int(sys.argv[1])))
    except (KeyboardInterrupt, BrokenPipeError):
        raise SystemExit(130) from None
