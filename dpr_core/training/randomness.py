"""The states of torch's generators, which nothing but dropout draws from: each process has its own, so that those that
work on different micro-batches drop different things."""

from collections.abc import Sequence

import torch

from dpr_core import distributed
from dpr_core.state import State


def draw_apart() -> None:
    """Once all processes have drawn the same: from here on each draws numbers of its own, and the first as before."""
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
        draw_apart()
