"""Hashes of local files: what tells an edited file from the one that an artifact was made of."""

import hashlib
import json
from pathlib import Path


def of_file(path: Path) -> str:
    """SHA-256 of the content, as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def of_folder(folder: Path) -> str:
    """Hash of the names and contents of every file below a folder."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    listing = [[name, of_file(folder / name)] for name in names]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()
