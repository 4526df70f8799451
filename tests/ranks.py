"""Python functions run by several gloo processes of this machine at once, or by this process alone."""

import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tests import forked


def run(ranks: int, work: Callable[[Path], None], folder: Path) -> None:
    """`work(folder)` in each of so many processes of the fork server."""
    context = forked.context()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [context.Process(target=_one, args=(rank, common, work, folder)) for rank in range(ranks)]
    for each in started:
        each.start()
    for each in started:
        each.join(timeout=600)
    for each in started:
        each.kill()
    assert [each.exitcode for each in started] == [0] * ranks, "what went wrong is in the captured output"


def _one(rank: int, common: Mapping[str, str], work: Callable[[Path], Any], folder: Path) -> None:
    # LOCAL_WORLD_SIZE and OMP_NUM_THREADS are what `accelerate launch` sets, too.
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": common["WORLD_SIZE"]}
    os.environ.update(common, **own, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    work(folder)
    torch.distributed.destroy_process_group()
