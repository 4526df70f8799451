"""One process at a time, and an orderly end: file locks that die with their holder, and SIGTERM as an exception."""

import fcntl
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from dpr_core.errors import DensePathError


@contextmanager
def exclusive(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file `path`. The kernel frees it when the process ends, however it ends."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise DensePathError(
                f"{path}: files cannot be locked here ({error.strerror}); set DPR_HOME to a folder on a local disk"
            ) from error
        yield


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


@contextmanager
def terminable() -> Iterator[None]:
    """Inside the block the first SIGTERM raises Terminated, and the others wait until the block has cleaned up.

    Where somebody else handles SIGTERM already, as Prefect does in its workers' flow runs, it stays with them. Threads
    other than the main one get no signals.
    """
    previous = signal.getsignal(signal.SIGTERM)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or previous is not signal.SIG_DFL:
        yield
        return
    received = False

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if not received:
            received = True
            raise Terminated("terminated by SIGTERM")

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
