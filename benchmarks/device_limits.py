"""What a machine can do at most: products and bytes a second, measured on the device that is there, and the maker's
figures where torch's name for the device is one that the planner knows."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dpr_core.planning.compute import Work
from dpr_core.planning.hardware import GPUS, Gpu


@dataclass(frozen=True)
class Limits:
    """What the machine reaches by itself, a second."""

    operations: dict[torch.dtype, float]
    """Of a large matrix product."""
    read: float
    """Bytes, of a large tensor that is copied or summed up, whichever moves more."""

    def share(self, least: Work, taken: float, dtype: torch.dtype) -> float:
        """Of the bytes that could have been read in these seconds, or else of the operations in the activations'
        type."""
        return (least.read / self.read if least.read else least.operations / self.operations[dtype]) / taken

    def at_most(self, least: Work, dtype: torch.dtype) -> float | None:
        """The share of operations, were every product at the limit of its own type."""
        computing = least.body / self.operations[dtype] + least.head / self.operations[torch.float32]
        return None if least.read else self.share(least, computing, dtype)


def by_measuring(device: torch.device, dtypes: Sequence[torch.dtype]) -> Limits:
    on_gpu = device.type == "cuda"
    operations, n = {}, 16384 if on_gpu else 1024
    for dtype in dtypes:
        left, right, out = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(3))
        run = lambda: torch.mm(left, right, out=out)  # noqa: B023, E731
        operations[dtype] = 2 * n**3 / min(seconds(run, device, 3))
    source = torch.ones(2**30 if on_gpu else 2**26, device=device)
    copy = torch.empty_like(source)
    copied, summed = (min(seconds(run, device, 3)) for run in (lambda: copy.copy_(source), source.sum))
    return Limits(operations, source.nbytes * max(2 / copied, 1 / summed))


def by_maker(gpu: Gpu, dtypes: Sequence[torch.dtype]) -> Limits:
    return Limits({dtype: gpu.teraflops(named(dtype)) * 1e12 for dtype in dtypes}, gpu.gigabytes_per_second * 1e9)


def known(name: str) -> Gpu | None:
    """The GPU of the planner's table that torch calls so; parts, laptops and other editions have peaks of their own."""
    words = {word.removesuffix("gb") for word in re.findall(r"\w+", name.lower())}
    if words & {"mig", "laptop", "nvl"}:
        return None
    found = [key for key in GPUS if words.issuperset(key.split("-"))]
    return GPUS[max(found, key=len)] if found else None


def named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def seconds(run: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """The wall's until a GPU is done, or the processor's, which are on one thread the wall's less what other programs
    took. The first round, which is not counted, warms up."""
    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    taken = []
    for _ in range(repeats + 1):
        started = clock()
        run()
        if on_gpu:
            torch.cuda.synchronize()
        taken.append(clock() - started)
    return taken[1:]


def rows_of(limits: Limits, makers: Limits | None) -> list[dict[str, Any]]:
    """A line of a table for each limit."""
    operations = [
        {
            "limit": f"teraflops, {named(dtype)}",
            "measured": found / 1e12,
            "makers": makers.operations[dtype] / 1e12 if makers else None,
        }
        for dtype, found in limits.operations.items()
    ]
    makers_read = makers.read / 1e9 if makers else None
    return [*operations, {"limit": "gigabytes a second", "measured": limits.read / 1e9, "makers": makers_read}]
