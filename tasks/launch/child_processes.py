"""Child processes of this program: their environment, their exit status in words, and their end with their parent."""

import ctypes
import os
import signal
from pathlib import Path

from dpr_core.cores import SHARE, usable_cores

ROOT = Path(__file__).parents[2]

PR_SET_PDEATHSIG = 1


def environment(sharing: int = 1) -> dict[str, str]:
    """This one's, with our own modules to be found, and an equal share of the cores for each of so many processes."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    share = {SHARE: str(max(1, usable_cores() // sharing))} if sharing > 1 else {}
    # Bars of several processes would overwrite each other; lines do not.
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TTY_COMPATIBLE": "0"} | share


def how_it_ended(status: int) -> str:
    """As the end of a sentence about a process."""
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however that ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(1)
