"""Process-wide settings of torch: CPU threads, random generators, and the check for a GPU."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from dpr_core import distributed
from dpr_core.cores import usable_cores
from dpr_core.errors import UsageError
from dpr_core.state import State


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Run a block with so many CPU threads. None takes OMP_NUM_THREADS where it is set, and else as many as this
    process has cores: torch counts neither a container's quota nor other processes of the run, and threads that contend
    for cores cost more than they bring."""
    before = torch.get_num_threads()
    chosen = before if os.environ.get("OMP_NUM_THREADS") else min(before, usable_cores())
    torch.set_num_threads(count or chosen)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def refuse_without_gpu() -> None:
    """Raise if torch sees none: with a build for the CPU alone, for want of a driver, or because there is none."""
    if torch.cuda.is_available():
        return
    if torch.version.cuda or torch.version.hip:
        reason = "sees none: look at `nvidia-smi`, the driver's version and CUDA_VISIBLE_DEVICES"
    else:
        reason = "is a build for the CPU alone: install one for your GPU (https://pytorch.org/get-started)"
    raise UsageError(
        f"a GPU is asked for (device=cuda), but torch {torch.__version__} {reason}; or take what there is: "
        "--set device=auto, or for a single stage --set execution.device=auto"
    )


def decorrelate_ranks() -> None:
    """Different random numbers, which only dropout draws, in each process: call once all have drawn the same. The first
    process goes on as before."""
    if distributed.rank() > 0:
        torch.manual_seed(int(torch.randint(2**62, ())) + distributed.rank())


def random_state() -> State:
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": list(devices)}


def set_random_state(states: Sequence[State]) -> None:
    """Go on from the states of as many processes as there were. Where there are more now, the others begin anew."""
    rank = distributed.rank()
    state = states[rank % len(states)]
    torch.set_rng_state(state["cpu"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    if rank >= len(states):
        decorrelate_ranks()
