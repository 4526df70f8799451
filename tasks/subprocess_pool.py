"""A pool of subprocesses on this machine, each of which runs one stage at a time, with GPUs of its own."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path

from dpr_core.config.base import StageConfig
from dpr_core.config.execution import ExecutionConfig
from dpr_core.errors import DensePathError
from dpr_core.redaction import redact_logs
from tasks.launch.child_processes import environment, how_it_ended
from tasks.run_job import run_job
from tasks.run_stage import Outcome, StageJob
from tasks.running.observer import OBSERVER, Observer

ALL = 2**16
"""More GPUs than there are."""

VISIBLE = "CUDA_VISIBLE_DEVICES"

STOP_SECONDS = 30.0
"""How long a process has to end its stage as KILLED."""

# Ctrl-C and the end of a terminal reach all its processes, and count for the one that knows what to do about the rest.
START = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    "from tasks import subprocess_pool; subprocess_pool.main()"
)


def gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    if not any(Path(file).exists() for file in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")):
        return []
    if (named := os.environ.get(VISIBLE)) is not None:
        return [each.strip() for each in named.split(",") if each.strip() not in ("", "-1")]
    # Counted elsewhere: this process does not compute, and stays without torch.
    count = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    return [str(number) for number in range(int(subprocess.run(count, capture_output=True, text=True).stdout or 0))]


class SubprocessPool:
    """As many processes as there are jobs at once, at most `jobs`, which share the cores and divide the GPUs. They end
    with the block, or with this process."""

    def __init__(self, jobs: int = 1, gpus: Sequence[str] = ()) -> None:
        self._jobs = jobs
        self._gpus = list(gpus)
        self._free = list(gpus)
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._queue: list[StageJob] = []
        """Those that wait for GPUs, in turn: one that needs several is not overtaken until it has them."""
        self._changed = threading.Condition()
        self._closed = False

    def run(self, job: StageJob) -> Outcome:
        """Run or reuse a stage in an idle process, once the GPUs that it needs are free. Waits for it; safe to call
        from many threads."""
        needed = min(gpus_of(job.config), len(self._gpus))
        with self._changed:
            if needed:
                self._queue.append(job)
                self._changed.wait_for(lambda: self._closed or (self._queue[0] is job and len(self._free) >= needed))
                self._queue.remove(job)
                self._changed.notify_all()
            if self._closed:
                raise DensePathError(f"{job.name}: not started, because the run is ending")
            worker = self._worker(needed)
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
            with self._changed:
                self._busy.discard(worker)
                self._free += worker.gpus
                if alive:
                    self._idle.append(worker)
                self._changed.notify_all()
        return outcome

    def _worker(self, needed: int) -> "_Worker":
        """An idle process with so many GPUs, or a new one; what an idle process holds of its memory is given back."""
        fits = [each for each in self._idle if len(each.gpus) == needed and set(each.gpus) <= set(self._free)]
        worker = fits[-1] if fits else _Worker(self._jobs, self._free[:needed] if self._gpus else None)
        self._free = [each for each in self._free if each not in worker.gpus]
        for other in [each for each in self._idle if each is worker or set(each.gpus) & set(worker.gpus)]:
            self._idle.remove(other)
            if other is not worker:
                other.stop()
                other.wait()
        return worker

    def __enter__(self) -> "SubprocessPool":
        return self

    def __exit__(self, *_: object) -> None:
        """End them all; a stage at work is ended as KILLED."""
        with self._changed:
            self._closed = True
            workers = [*self._idle, *self._busy]
            self._changed.notify_all()
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.wait()


class _ProcessEndedError(Exception):
    """The process has ended."""


class _Worker:
    """One process, and the connection to it."""

    def __init__(self, sharing: int, gpus: Sequence[str] | None = None) -> None:
        self.gpus = list(gpus or ())
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", START, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,
                env=environment(sharing) | ({} if gpus is None else {VISIBLE: ",".join(gpus)}),
            )
        self._connection = Connection(ours.detach())

    def run(self, job: StageJob) -> Outcome:
        watching = OBSERVER.get()
        try:
            self._connection.send(job)
            with ExitStack() as turn:
                while isinstance(answer := self._connection.recv(), tuple):
                    match answer:
                        case "progress", *told:
                            watching.progress(*told)
                        case "turn", *asked:
                            turn.enter_context(watching.turn(*asked, wanted=self.lives))
                            self._connection.send(None)
        except (EOFError, OSError):
            raise _ProcessEndedError(how_it_ended(self.wait())) from None
        if isinstance(answer, DensePathError):
            raise answer
        assert isinstance(answer, Outcome)
        return answer

    def lives(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        if self.lives():
            self._process.terminate()

    def wait(self) -> int:
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def gpus_of(config: StageConfig) -> int:
    """How many GPUs of this machine a stage uses where there are any: one a process."""
    execution = getattr(config, "execution", None)
    if not isinstance(execution, ExecutionConfig) or execution.launch.is_elsewhere:
        return 0
    return execution.launch.processes or ALL


class _Watched(Observer):
    """Passes everything on to the observer of the process that asked for the stage."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._left = False

    def turn(
        self, stage: str, config: StageConfig, wanted: Callable[[], bool] = lambda: True
    ) -> AbstractContextManager[object]:
        self._connection.send(("turn", stage, config))
        self._connection.recv()
        return nullcontext()  # It ends with the stage.

    def progress(self, step: int, total: int | None, note: str) -> None:
        if self._left:
            return
        try:
            self._connection.send(("progress", step, total, note))
        except OSError:
            # That process is gone: the stage ends where nothing is lost, as by the signal it would have sent.
            self._left = True
            os.kill(os.getpid(), signal.SIGTERM)


def serve(connection: Connection) -> None:
    """Run one job after another until the connection is closed."""
    OBSERVER.set(_Watched(connection))
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
