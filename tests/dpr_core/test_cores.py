"""Cores within affinity, quota and share."""

import os
from pathlib import Path

import pytest

from dpr_core.cores import usable_cores

V2 = "0::/\n"
V2_POD = "0::/pod/container\n"
V1 = "9:memory:/pod\n4:cpu,cpuacct:/pod\n0::/\n"
HOST = "4:cpu,cpuacct:/a/path/of/the/host\n"


@pytest.mark.parametrize(
    ("groups", "limits", "cores"),
    [
        (V2, {}, 6),
        (V2, {"cpu.max": "max 100000\n"}, 6),
        (V2, {"cpu.max": "250000 100000\n"}, 2),
        (V2, {"cpu.max": "50000 100000\n"}, 1),
        (V2, {"cpu.max": "900000 100000"}, 6),
        (V2, {"cpu.max": "odd"}, 6),
        (None, {"cpu.max": "300000 100000"}, 3),
        (V2_POD, {"pod/container/cpu.max": "max 100000", "pod/cpu.max": "400000 100000"}, 4),
        (V2_POD, {"cpu.max": "200000 100000"}, 2),
        (V1, {"cpu,cpuacct/pod/cpu.cfs_quota_us": "300000", "cpu,cpuacct/pod/cpu.cfs_period_us": "100000"}, 3),
        (V1, {"cpu/pod/cpu.cfs_quota_us": "150000", "cpu/pod/cpu.cfs_period_us": "50000"}, 3),
        (V1, {"cpu/pod/cpu.cfs_quota_us": "-1", "cpu/pod/cpu.cfs_period_us": "100000"}, 6),
        (V1, {"memory/pod/cpu.cfs_quota_us": "100000", "memory/pod/cpu.cfs_period_us": "100000"}, 6),
        (HOST, {"cpu,cpuacct/cpu.cfs_quota_us": "200000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 2),
    ],
)
def test_cores_are_counted_within_affinity_and_quota(
    groups: str | None, limits: dict[str, str], cores: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DPR_CORES", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)))
    monkeypatch.setattr("dpr_core.cores.CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr("dpr_core.cores.MEMBERSHIP", tmp_path / "membership")
    if groups is not None:
        (tmp_path / "membership").write_text(groups)
    for name, limit in limits.items():
        file = tmp_path / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(limit)
    assert usable_cores() == cores
    monkeypatch.setenv("DPR_CORES", "2")
    assert usable_cores() == min(2, cores)
