"""CPU cores that a process may use: its affinity, its cgroups' CPU quota, and its share beside others of a run."""

import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")

SHARE = "DPR_CORES"
"""The environment variable that holds the cores of one of several processes that share a machine."""

MOST_PROCESSES = 64
"""That share the stages of a run on one machine."""


def usable_cores() -> int:
    """At least 1, and a share of a core counts as none beside whole ones."""
    cores: float = len(os.sched_getaffinity(0))
    share = os.environ.get(SHARE, "")
    if share.isdecimal():
        cores = min(cores, int(share))
    return max(1, int(min([cores, *_quotas()])))


def _quotas() -> Iterator[float]:
    """In cores: of the cgroups that this process is in, and of those around them, in either version's layout."""
    for folder in _cgroups():
        try:
            if (limit := folder / "cpu.max").is_file():
                quota, period = map(float, limit.read_text(encoding="ascii").split())
            else:
                quota, period = (float((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        except (OSError, ValueError):
            # No limit here: version 2 says max.
            continue
        # Version 1 says -1 where there is no limit.
        if quota > 0 and period > 0:
            yield quota / period


def _cgroups() -> Iterator[Path]:
    try:
        lines = MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = ["0::/"]
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Inside of a container the path may be the host's, which is not there; the container's own limits are on top.
        for top in {CGROUPS / controllers, CGROUPS / "cpu"} if controllers else {CGROUPS}:
            inner = top / path.lstrip("/")
            yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(top))
