"""Child processes of this program: usable cores, environment, exit status in words."""

import os
import signal
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")

ROOT = Path(__file__).parents[2]


def usable_cores() -> int:
    """How many cores this process may use: its affinity, and the quota of its container."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = map(int, QUOTA.read_text(encoding="utf-8").split())
    except (OSError, ValueError):
        return cores
    return max(1, min(cores, quota // period))


def environment() -> dict[str, str]:
    """This one's, with our own modules to be found."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Bars of several processes would overwrite each other; lines do not.
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TTY_COMPATIBLE": "0"}


def how_it_ended(status: int) -> str:
    """As the end of a sentence about a process."""
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}"
