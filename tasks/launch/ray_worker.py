"""A worker of Ray Train, which starts one rank of a stage and says how it ended."""

import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from logging import INFO
from pathlib import Path
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

    async def set(self, event: str) -> None:
        self._events[event].set()

    async def wait(self, event: str) -> None:
        await self._events[event].wait()

    async def tell(self, lines: list[str]) -> None:
        self._told += lines

    async def heard(self) -> list[str]:
        told, self._told = self._told, []
        return told


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
    with tempfile.TemporaryDirectory(prefix="dpr-rank-") as private:
        job, told, error = (Path(private, name) for name in ("job.json", "told", "error.json"))
        job.write_text(settings["job"], encoding="utf-8")
        told.touch()
        variables = settings["environment"] | environment() | _place()
        variables |= {"TORCHELASTIC_RUN_ID": "ray", "TORCHELASTIC_ERROR_FILE": str(error), TOLD: str(told)}
        if unlike := _unlike(settings["versions"]):
            raise RankError(failure(DensePathError.__name__, unlike))
        if is_first:
            name, size = json.loads(settings["job"])["name"], variables["WORLD_SIZE"]
            where = f"{name}: {size} ranks on Ray, rank 0 on {variables['MASTER_ADDR']}"
            board.tell.remote([json.dumps({"log": ["dense_path", INFO, where]})])
        with Path(private, "log").open("w+b") as log, told.open(encoding="utf-8") as hearing:
            rank = subprocess.Popen(
                [sys.executable, "-P", "-m", "tasks.launch.worker", str(job)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=variables,
            )
            is_over = _lead(rank, board, hearing) if is_first else _follow(rank, board)
            log.seek(0)
            words = log.read().decode(errors="replace")
        ended = _how_it_ended(rank.returncode, error, words)
    if ended is None or is_over or (is_first and ended["error_file_data"].get("kind") in FINAL):
        if is_first:
            ray.get(board.set.remote("over"))
        return ended
    if rank.returncode < 0 or not ray.wait([board.wait.remote("over")], timeout=VERDICT_SECONDS)[0]:
        raise RankError(ended)
    return None


def _place() -> dict[str, str]:
    """Who this rank is, in torch's words. Rank 0 says where the others find it."""
    context = ray.train.get_context()
    address = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as free:
        free.bind((address, 0))
        meeting = broadcast_from_rank_zero((address, free.getsockname()[1]))
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    values = (
        context.get_world_rank(),
        context.get_world_size(),
        context.get_local_rank(),
        context.get_local_world_size(),
        *meeting,
    )
    return dict(zip(names, map(str, values), strict=True))


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


def _how_it_ended(status: int, error: Path, words: str) -> dict[str, Any] | None:
    """As torch's agent says it; None where there is nothing to say."""
    if status == 0:
        return None
    said = json.loads(error.read_text(encoding="utf-8")) if error.exists() else {}
    return failure(said.get("kind"), said.get("text", ""), status) | {"words": words[-MOST_WORDS:]}
