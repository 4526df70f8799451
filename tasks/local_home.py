"""The local home, `DPR_HOME`: the embedded store, locks, work in progress; and errors of a full disk."""

import errno
import os
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from dpr_core.errors import DensePathError, UsageError
from dpr_core.files import expanded
from tasks.locks import exclusive

ATTEMPT = "ATTEMPT"
"""The file in `work/<key>` that names the run whose work it is."""

FOLDERS = ("artifacts", "cache", "locks", "work")


class UnwritableHomeError(UsageError):
    """What is in the home can be read at most."""


def home_folder() -> Path:
    """`DPR_HOME`, or `./.dpr` if unset."""
    setting = os.environ.get("DPR_HOME") or ".dpr"
    home = Path(os.path.abspath(expanded(setting)))
    if set("?#%") & set(str(home)):
        raise UsageError(f"DPR_HOME: {home} has a ?, # or % in its name, which MLflow cannot take; use another folder")
    return home


def open_home() -> Path:
    """The home, made if need be and proven writable."""
    home = home_folder()
    try:
        for folder in FOLDERS:
            (home / folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home / "work") as probe:
            probe.write(bytes(4096))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        if is_full(error):
            raise disk_full_error(home) from error
        raise unwritable(home, error.strerror) from error
    return home


def unwritable(home: Path, why: str | None) -> UnwritableHomeError:
    return UnwritableHomeError(
        f"DPR_HOME: cannot write to {home} ({why}); set DPR_HOME to a folder that you may write to"
    )


def identity_of(home: Path) -> str:
    """A name that stays with the folder, made at its first use: a container's host name changes at every restart."""
    file = home / "ID"
    if file.exists():
        return file.read_text(encoding="ascii")
    with exclusive(home / "locks" / "home.lock"):
        if not file.exists():
            new = home / "work" / "ID.new"
            new.write_text(uuid.uuid4().hex, encoding="ascii")
            new.rename(file)
        return file.read_text(encoding="ascii")


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_IN_WORDS = (*map(os.strerror, FULL), "database or disk is full")


class DiskFullError(OSError):
    """The disk is full, and what was to be written needs so many bytes."""

    def __init__(self, needed: int) -> None:
        super().__init__(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.needed = needed


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, says that the disk is full or that a file may not grow (`ulimit -f`); C++
    and Rust libraries say it in words."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        if any(words in str(error) for words in FULL_IN_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def disk_full_error(home: Path) -> DensePathError:
    return DensePathError(
        f"no space left in {home}; free some, or set DPR_HOME to a folder on another disk "
        "(`ulimit -f` must let files grow)"
    )


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def syncing(paths: Iterable[Path]) -> Iterator[None]:
    """`sync` those that are plain files while the block does something else. They are on the disk at its end."""

    def each() -> None:
        for path in paths:
            if stat.S_ISREG(path.lstat().st_mode):
                sync(path)

    with ThreadPoolExecutor(1) as pool:
        synced = pool.submit(each)
        yield
        synced.result()
