"""A worker of Ray Train, which starts one rank of a stage and says how it ended."""

import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from logging import INFO
from typing import Any, TextIO

import ray
import ray.train
from ray.train.backend import Backend, BackendConfig
from ray.train.collective import broadcast_from_rank_zero

from dpr_core.errors import DensePathError, UsageError
from tasks.artifacts.identity import library_versions
from tasks.launch.agent import failure
from tasks.launch.child_processes import environment
from tasks.launch.worker import TOLD
from tasks.local_home import DiskFullError

POLL_SECONDS = 0.5

VERDICT_SECONDS = 5.0
"""How long a rank that failed waits for the end of rank 0, for want of which it may have failed, or of one that was
killed; and how long one has to end by itself after rank 0."""

MOST_WORDS = 4000

FINAL = {UsageError.__name__, DensePathError.__name__, DiskFullError.__name__}
"""What a rank 0 raises that would be raised again."""


class RankError(Exception):
    """A rank has ended that is to be begun again."""

    def __init__(self, failure: dict[str, Any]) -> None:
        super().__init__(failure)
        self.failure = failure


class Board:
    """The actor by which the driver, rank 0 and the others know of each other: `stop` is said to rank 0, and `over` is
    said to the others."""

    def __init__(self) -> None:
        self._events = {"stop": asyncio.Event(), "over": asyncio.Event()}
        self._told: list[str] = []
        self._last = time.monotonic()

    async def set(self, event: str) -> None:
        self._events[event].set()

    async def wait(self, event: str) -> None:
        await self._events[event].wait()

    async def tell(self, lines: list[str]) -> None:
        """Of rank 0, which calls this all the time, as long as it runs."""
        self._told += lines
        self._last = time.monotonic()

    async def heard(self) -> tuple[list[str], float]:
        """What it told since this was called last, and for how many seconds there has been no word of any."""
        told, self._told = self._told, []
        return told, time.monotonic() - self._last


class _SharedDevices(Backend):
    share_cuda_visible_devices = True


class SharedDevices(BackendConfig):
    """Every rank sees all the stage's GPUs of its node, as under any other launcher. The process group is its own."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _SharedDevices


def train(settings: dict[str, Any]) -> dict[str, Any] | None:
    """Have a process be this rank. Returns how rank 0 ended, where it would end so again."""
    board, context = settings["board"], ray.train.get_context()
    is_first = context.get_world_rank() == 0
    with ExitStack() as files:
        # Without names: Ray kills a worker that it ends, and nothing is to be left of it.
        job, told, error, log = (
            files.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")) for _ in range(4)
        )
        job.write(settings["job"])
        job.flush()
        variables = settings["environment"] | environment() | _place()
        variables |= {"TORCHELASTIC_RUN_ID": "ray", "TORCHELASTIC_ERROR_FILE": _name(error), TOLD: _name(told)}
        if unlike := _unlike(settings["versions"]):
            raise RankError(failure(DensePathError.__name__, unlike))
        if is_first:
            name, size = json.loads(settings["job"])["name"], variables["WORLD_SIZE"]
            where = f"{name}: {size} ranks on Ray, rank 0 on {variables['MASTER_ADDR']}"
            board.tell.remote([json.dumps({"log": ["dense_path", INFO, where]})])
        rank = subprocess.Popen(
            [sys.executable, "-P", "-m", "tasks.launch.worker", _name(job)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=variables,
            pass_fds=[file.fileno() for file in (job, told, error)],
        )
        is_over = _lead(rank, board, told) if is_first else _follow(rank, board)
        ended = _how_it_ended(rank.returncode, error, log)
    if ended is None or is_over or (is_first and ended["error_file_data"].get("kind") in FINAL):
        if is_first:
            ray.get(board.set.remote("over"))
        return ended
    if rank.returncode < 0 or not ray.wait([board.wait.remote("over")], timeout=VERDICT_SECONDS)[0]:
        raise RankError(ended)
    return None


def _name(file: TextIO) -> str:
    """By which the rank opens it."""
    return f"/dev/fd/{file.fileno()}"


def _place() -> dict[str, str]:
    """Who this rank is, in torch's words. Rank 0 says where the others find it."""
    context = ray.train.get_context()
    address = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as free:
        free.bind((address, 0))
        meeting = broadcast_from_rank_zero((address, free.getsockname()[1]))
    return {
        "RANK": str(context.get_world_rank()),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "MASTER_ADDR": meeting[0],
        "MASTER_PORT": str(meeting[1]),
    }


def _unlike(theirs: dict[str, str]) -> str | None:
    """What this node has that is not as where the stage was started."""
    ours = library_versions()
    for name in sorted(theirs):
        if ours.get(name) != theirs[name]:
            here = f"{ray.util.get_node_ip_address()} has {name} {ours.get(name)}"
            return f"{here}, and the stage was started with {theirs[name]}: install the same on all nodes"
    return None


def _lead(rank: "subprocess.Popen[bytes]", board: Any, hearing: TextIO) -> bool:
    """Pass on what rank 0 tells until it has ended; returns whether it was told to."""
    stop, is_told, rest = board.wait.remote("stop"), False, ""
    is_alive = True
    while is_alive:
        is_alive = rank.poll() is None
        *lines, rest = (rest + hearing.read()).split("\n")
        # It says its own number, by which the driver of this node would not reach it.
        board.tell.remote([line for line in lines if "pid" not in json.loads(line)])
        if is_told:
            time.sleep(POLL_SECONDS)
        elif is_alive and ray.wait([stop], timeout=POLL_SECONDS)[0]:
            rank.terminate()
            is_told = True
    return is_told


def _follow(rank: "subprocess.Popen[bytes]", board: Any) -> bool:
    """Wait for one of the others; returns whether rank 0 had ended. By itself it ends soon then, or hangs."""
    over = board.wait.remote("over")
    while rank.poll() is None:
        if ray.wait([over], timeout=POLL_SECONDS)[0]:
            try:
                rank.wait(VERDICT_SECONDS)
            except subprocess.TimeoutExpired:
                rank.kill()
                rank.wait()
            return True
    return False


def _how_it_ended(status: int, error: TextIO, log: TextIO) -> dict[str, Any] | None:
    """As torch's agent says it; None where there is nothing to say."""
    if status == 0:
        return None
    log.seek(0)
    said = json.loads(error.read() or "{}")
    return failure(said.get("kind"), said.get("text", ""), status) | {"words": log.read()[-MOST_WORDS:]}
