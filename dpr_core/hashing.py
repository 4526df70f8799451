"""SHA-256 of local files and folders, by which an edited input is recognised, and reading that keeps to it."""

import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from dpr_core.errors import DensePathError, UsageError
from dpr_core.files import refuse_special

BUFFER_BYTES = 2**16


def hash_file(path: Path) -> str:
    """SHA-256 of the content, as hex."""
    refuse_special(path)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_folder(folder: Path) -> str:
    """Hash of the names and contents of all files below a folder; UsageError for a link that leads out of it, and for
    what is neither file nor folder."""
    names = []
    for path in folder.rglob("*"):
        if path.is_symlink() and not _stays_inside(path, folder):
            raise UsageError(f"{path} is a link to {path.resolve()}, out of the folder; put the file itself there")
        if path.exists() and not path.is_dir():
            names.append(path.relative_to(folder).as_posix())
    try:
        listing = [[name, hash_file(folder / name)] for name in sorted(names)]
    except OSError as error:
        raise UsageError(f"cannot read {error.filename or folder}: {error.strerror}") from None
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


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
