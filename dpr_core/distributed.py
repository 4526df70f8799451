"""Distributed processes: rank, world size and the collectives; each process holds all data and gets all results.

With one process, everything here is a no-op. With several, all must call the same collectives in the same order, or
they deadlock.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import PartialState

T = TypeVar("T")


def state(timeout: timedelta | None = None) -> "PartialState":
    """Accelerate's view of this process; the first call initialises the process group, with this timeout of a
    collective in place of torch's."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    if PartialState._shared_state:
        return PartialState()
    settings: dict[str, Any] = {"cpu": parse_flag_from_env("ACCELERATE_USE_CPU")}
    if timeout is not None:
        settings["timeout"] = timeout
    if "LOCAL_RANK" in os.environ and not torch.cuda.is_available():
        settings["cpu"] = True  # else Accelerate takes each rank for the only one
    elif "LOCAL_RANK" in os.environ and not settings["cpu"]:
        # gloo beside NCCL, for tensors on the CPU.
        settings["backend"] = "cuda:nccl,cpu:gloo"
    return PartialState(**settings)


def world_size() -> int:
    """The number of processes."""
    return 1 if _alone.get() else int(state().num_processes)


def rank() -> int:
    """The index of this process, from 0 on."""
    return 0 if _alone.get() else int(state().process_index)


_alone = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """A context in which this process works by itself, as where another program gave each process other data."""
    before = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(before)


def device() -> torch.device:
    """The device of this process."""
    return torch.device(state().device)


def shard_work(work: Sequence[T]) -> Iterator[tuple[T, bool]]:
    """This process's share of the work. All processes iterate equally often, since gathering a sharded model is a
    collective: a piece that comes with False is computed for that alone, and its result discarded."""
    for turn in range(0, len(work), world_size()):
        is_mine = turn + rank() < len(work)
        yield work[turn + rank() if is_mine else 0], is_mine


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum over all processes, in every process."""
    if world_size() == 1:
        return values
    total = values.to(device())
    torch.distributed.all_reduce(total)
    return total.to(values.device)


def all_gather(values: Iterable[T]) -> list[T]:
    """The values of all processes in the order of their ranks, in every process."""
    from accelerate.utils import gather_object

    mine = list(values)
    return list(gather_object(mine)) if world_size() > 1 else mine


def is_dtensor(values: Tensor) -> bool:
    """Whether a tensor is this process's shard (a DTensor); without importing torch.distributed.tensor."""
    return hasattr(values, "full_tensor")
