"""One process at a time: file locks that die with their holder."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

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
