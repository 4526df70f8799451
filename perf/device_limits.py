"""Peak FLOP/s and memory bandwidth of the device, measured, with the maker's figures beside them where the planner
knows the device."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dpr_core.logprobs import on_tensor_cores
from dpr_core.planning.hours import GPUS, Gpu, StageWork


@dataclass(frozen=True)
class Limits:
    """What the machine reaches by itself, a second."""

    operations: float
    """Of a large matrix product in the type of the activations."""
    head: float
    """Of one as the head makes it: in float32, or in TensorFloat-32."""
    read: float
    """Bytes, of a large tensor that is copied or summed up, whichever moves more."""

    def share(self, least: StageWork, taken: float) -> float:
        """Of the bytes that could have been read in these seconds, or else of the operations."""
        return (least.read / self.read if least.read else least.operations / self.operations) / taken

    def at_most(self, least: StageWork) -> float | None:
        """The share of operations, were every product at the limit of its own type."""
        return None if least.read else self.share(least, least.body / self.operations + least.head / self.head)


def by_measuring(device: torch.device, dtype: torch.dtype, tf32_head: bool = False) -> Limits:
    on_gpu = device.type == "cuda"
    n = 16384 if on_gpu else 1024

    def product(dtype: torch.dtype) -> float:
        left, right, out = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(3))
        return 2 * n**3 / min(seconds(lambda: torch.mm(left, right, out=out), device, 3))

    operations = product(dtype)
    with on_tensor_cores(tf32_head):
        head = operations if dtype == torch.float32 else product(torch.float32)
    source = torch.ones(2**30 if on_gpu else 2**26, device=device)
    copy = torch.empty_like(source)
    copied, summed = (min(seconds(run, device, 3)) for run in (lambda: copy.copy_(source), source.sum))
    return Limits(operations, head, source.nbytes * max(2 / copied, 1 / summed))


def by_maker(gpu: Gpu, dtype: torch.dtype, tf32_head: bool = False) -> Limits:
    name = str(dtype).removeprefix("torch.")
    head = gpu.head_teraflops(name, tf32_head)
    return Limits(gpu.teraflops(name) * 1e12, head * 1e12, gpu.gigabytes_per_second * 1e9)


def known(name: str) -> Gpu | None:
    """The GPU of the planner's table that torch calls so; parts, laptops and other editions have peaks of their own."""
    words = {word.removesuffix("gb") for word in re.findall(r"\w+", name.lower())}
    if words & {"mig", "laptop", "nvl"}:
        return None
    found = [key for key in GPUS if words.issuperset(key.split("-"))]
    return GPUS[max(found, key=len)] if found else None


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
    units = {
        "operations": ("teraflops", 1e12),
        "head": ("teraflops of the head", 1e12),
        "read": ("gigabytes a second", 1e9),
    }
    return [
        {
            "limit": limit,
            "measured": getattr(limits, name) / unit,
            "makers": getattr(makers, name) / unit if makers else None,
        }
        for name, (limit, unit) in units.items()
    ]
