"""SHA-256 of local files and folders, by which an edited input is recognised."""

import hashlib
import json
from pathlib import Path

from dpr_core.errors import UsageError


def hash_file(path: Path) -> str:
    """SHA-256 of the content, as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_folder(folder: Path) -> str:
    """Hash of the names and contents of all files below a folder; UsageError for a link that leads out of it."""
    for path in folder.rglob("*"):
        if path.is_symlink() and not _stays_inside(path, folder):
            raise UsageError(f"{path} is a link to {path.resolve()}, out of the folder; put the file itself there")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    listing = [[name, hash_file(folder / name)] for name in names]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _stays_inside(link: Path, folder: Path) -> bool:
    """Whether a link stays in the folder, or in the hub cache's blobs, to which the files of a snapshot link."""
    target, inside = link.resolve(), [folder.resolve()]
    if inside[0].parent.name == "snapshots":
        inside.append(inside[0].parent.parent / "blobs")
    return any(target.is_relative_to(place) for place in inside)
