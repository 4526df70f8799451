"""Lock files (flock): one process at a time, freed by the kernel with their holder."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dpr_core.errors import DensePathError


@contextmanager
def exclusive(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file `path`. The kernel frees it when the process ends, however it ends."""
    while True:
        with _opened(path) as file:
            if not _lock(file, path):
                if on_wait is not None:
                    on_wait()
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_there(file, path):
                yield
                return


@contextmanager
def if_free(path: Path) -> Iterator[bool]:
    """Hold the lock file `path` if nobody else does, and say whether that is so."""
    with _opened(path) as file:
        yield _lock(file, path) and _is_there(file, path)


def is_held(path: Path) -> bool:
    """Whether a process that lives holds the lock file `path`."""
    try:
        with path.open() as file:
            # A shared lock, so that two who only ask do not block each other.
            return not _lock(file, path, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False
    except PermissionError:
        return True


def _opened(path: Path) -> IO[str]:
    try:
        return path.open("a")
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        raise DensePathError(
            f"cannot write {path} ({error.strerror}); set DPR_HOME to a folder that you may write to"
        ) from error


def _lock(file: IO[str], path: Path, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise DensePathError(
            f"{path}: files cannot be locked here ({error.strerror}); set DPR_HOME to a folder on a local disk"
        ) from error
    return True


def _is_there(file: IO[str], path: Path) -> bool:
    """Whether the file that was locked still has its name: `dpr gc` removes lock files that nobody holds."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
