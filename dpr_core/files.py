"""Strict reading of what users name: regular files alone, and JSON whose objects have every key once."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from dpr_core.errors import UsageError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


DATA_FOLDER = "DPR_REAL_DATA"
"""The environment variable that names a folder of data, for relative paths that are not in the current one."""


def expanded(name: str) -> Path:
    """The path that a setting names, where `~` is the home folder."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise UsageError(f"{name}: there is no such user here; write the path without ~") from None


def data_file(name: str) -> Path:
    """The file of data that a setting names: a relative one from the current folder, or else from `DPR_REAL_DATA`."""
    path = expanded(name)
    folder = os.environ.get(DATA_FOLDER)
    if path.is_absolute() or not folder or os.path.exists(path):
        return path
    elsewhere = expanded(folder) / path
    return elsewhere if os.path.exists(elsewhere) else path


def also_sought(name: str) -> str:
    """For the error about a file of data that is not there: where else it was looked for, or could have been."""
    if expanded(name).is_absolute():
        return ""
    folder = os.environ.get(DATA_FOLDER)
    here = f" (looked for in {Path.cwd()}"
    return f"{here} and in {DATA_FOLDER}, {folder})" if folder else f"{here}; {DATA_FOLDER} can name another folder)"


def refuse_special(path: Path) -> None:
    """UsageError for what is there and is no regular file, be it to read or to write; opening it might wait for ever.

    What is not there, or may not be looked at, passes: opening it says so.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    except ValueError as error:
        raise UsageError(f"{str(path)!r} is no name of a file: {error}") from None
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise UsageError(f"{path} is {kind}, but a file is needed; name an ordinary file")


def check_output(path: Path) -> None:
    """UsageError, before any work is done for it, where a file cannot be written."""
    refuse_special(path)
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"cannot write {path}: you may not write there; give another name")


class DuplicateKeyError(ValueError):
    """An object of JSON with a key that stands twice in it."""


class ConstantError(ValueError):
    """NaN or Infinity, which many writers take for JSON."""


def parse_json(text: str, constants: bool = False) -> Any:
    """The value of a JSON document; ValueError also for a key that stands twice in an object, and for NaN and Infinity
    unless `constants` lets them pass."""
    return (_WITH_CONSTANTS if constants else _STRICT).decode(text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise DuplicateKeyError(f"the key {twice!r} stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ConstantError(f"{name} is no number of JSON")


_WITH_CONSTANTS = json.JSONDecoder(object_pairs_hook=_once)
_STRICT = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)
