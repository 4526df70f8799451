"""Hashes of local files: what tells an edited file from the one that an artifact was made of."""

import hashlib
import json
from pathlib import Path

from dpr_core.errors import UsageError


def of_file(path: Path) -> str:
    """SHA-256 of the content, as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def of_folder(folder: Path) -> str:
    """Hash of the names and contents of every file below a folder, out of which no link may lead."""
    for path in folder.rglob("*"):
        if path.is_symlink() and not _stays(path, folder):
            raise UsageError(f"{path} is a link to {path.resolve()}, out of the folder; put the file itself there")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    listing = [[name, of_file(folder / name)] for name in names]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _stays(link: Path, folder: Path) -> bool:
    """A snapshot in the hub's cache is made of links to the files that it keeps two folders above."""
    target, inside = link.resolve(), [folder.resolve()]
    if inside[0].parent.name == "snapshots":
        inside.append(inside[0].parent.parent / "blobs")
    return any(target.is_relative_to(place) for place in inside)
