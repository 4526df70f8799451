"""SHA-256 of local files and folders, by which an edited input is recognised, and reading that keeps to it."""

import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from dpr_core.errors import DensePathError, UsageError
from dpr_core.files import refuse_special

T = TypeVar("T")
R = TypeVar("R")

CHECKPOINT_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
"""Patterns of the files of a Hugging Face checkpoint that are read; an optimizer's state is left alone."""

BUFFER_BYTES = 2**16
LARGE = 2**25
"""Bytes that take longer to hash than starting threads or waiting for the clock of a file system."""
THREADS = 8
"""Files that are hashed at once; beyond a few a disk is the limit."""
CLOCK_NS, COARSE_CLOCK_NS = 20_000_000, 2_000_000_000
"""Within which a file system may stamp two changes alike; the coarse ones know whole seconds."""


def hash_file(path: Path) -> str:
    """SHA-256 of the content, as hex."""
    refuse_special(path)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class HashCache:
    """Hashes of files that have not changed since they were hashed in this process, under whatever name."""

    def __init__(self) -> None:
        self._entries: dict[tuple[int, ...], str] = {}

    def sha256(self, path: Path) -> str:
        refuse_special(path)
        # Opened, so that a network file system asks its server.
        with path.open("rb") as stream:
            found = os.fstat(stream.fileno())
        stamp = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if (known := self._entries.get(stamp)) is not None:
            return known
        # A file changed a moment ago could change again without a new time stamp.
        changed = max(found.st_mtime_ns, found.st_ctime_ns)
        clock = CLOCK_NS if changed % 1_000_000_000 else COARSE_CLOCK_NS
        young = clock - (time.time_ns() - changed)
        if 0 < young <= CLOCK_NS and found.st_size >= LARGE:
            time.sleep(young / 1e9)
            return self.sha256(path)
        digest = hash_file(path)
        if young <= 0:
            self._entries[stamp] = digest
        return digest


KNOWN = HashCache()
"""Of this process."""


def several_at_once(function: Callable[[T], R], items: Sequence[T], size: int) -> list[R]:
    """`map` over files of `size` bytes altogether. Hashing and reading leave the interpreter to other threads."""
    if len(items) < 2 or size < LARGE:
        return list(map(function, items))
    with ThreadPoolExecutor(min(len(items), THREADS)) as pool:
        return list(pool.map(function, items))


def hash_folder(folder: Path, patterns: Sequence[str] = ("**/*",)) -> str:
    """Hash of the names and contents of all files below a folder, or of those of certain patterns; UsageError for a
    link that leads out of it, and for what is neither file nor folder. What has not changed is hashed once in a
    process."""
    names = []
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        if path.is_symlink() and not _stays_inside(path, folder):
            raise UsageError(f"{path} is a link to {path.resolve()}, out of the folder; put the file itself there")
        if path.exists() and not path.is_dir():
            names.append(path.relative_to(folder).as_posix())
    names.sort()
    try:
        size = sum((folder / name).stat().st_size for name in names)
        hashes = several_at_once(lambda name: KNOWN.sha256(folder / name), names, size)
    except OSError as error:
        raise UsageError(f"cannot read {error.filename or folder}: {error.strerror}") from None
    listing = [list(each) for each in zip(names, hashes, strict=True)]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def hash_model(folder: Path, gguf_file: str | None) -> str:
    """Hash of a local backbone: of the folder, or of the one file in it that is read."""
    if gguf_file is None:
        return hash_folder(folder)
    try:
        return KNOWN.sha256(folder / gguf_file)
    except OSError as error:
        raise UsageError(f"cannot read {folder / gguf_file}: {error.strerror}") from None


def refuse_changed(name: str, pinned: str | None, found: str) -> None:
    """DensePathError where what was read is not what the hash was pinned of; without a pin, anything is right."""
    if pinned is not None and found != pinned:
        raise DensePathError(
            f"{name} changed after its hash was noted ({pinned[:12]}, but {found[:12]} was read), so that "
            "nothing is made of it; run the same command again once nothing writes there any more"
        )


def read_pinned(path: Path, pinned: str | None) -> bytes:
    """The whole content of a file, which must have the pinned hash."""
    refuse_special(path)
    content = path.read_bytes()
    refuse_changed(str(path), pinned, hashlib.sha256(content).hexdigest())
    return content


@contextmanager
def open_pinned(path: Path, pinned: str | None) -> Iterator[BinaryIO]:
    """A file that is read once, from its start to its end: hashed as it is read, it must have the pinned hash then."""
    refuse_special(path)
    with path.open("rb", buffering=0) as file:
        hashed = _HashedReads(file)
        with io.BufferedReader(hashed, BUFFER_BYTES) as stream:
            yield stream
            while stream.read(BUFFER_BYTES):
                pass
            refuse_changed(str(path), pinned, hashed.digest.hexdigest())


class _HashedReads(io.RawIOBase):
    """A file that hashes what is read of it."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer) or 0
        self.digest.update(buffer[:count])
        return count


def _stays_inside(link: Path, folder: Path) -> bool:
    """Whether a link stays in the folder, or in the hub cache's blobs, to which the files of a snapshot link."""
    target, inside = link.resolve(), [folder.resolve()]
    if inside[0].parent.name == "snapshots":
        inside.append(inside[0].parent.parent / "blobs")
    return any(target.is_relative_to(place) for place in inside)
