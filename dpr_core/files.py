"""Regular files alone: a folder, pipe, socket or device that a user names is refused before anything opens it."""

import stat
from pathlib import Path

from dpr_core.errors import UsageError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def refuse_special(path: Path) -> None:
    """UsageError for what is there and is no regular file, be it to read or to write; opening it might wait for ever.

    What is not there, or may not be looked at, passes: opening it says so.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise UsageError(f"{path} is {kind}, but a file is needed; name an ordinary file")
