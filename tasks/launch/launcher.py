"""The launcher of a stage that several processes (ranks) run together: it starts, serves and ends them.

Every rank runs the stage's body (`tasks/launch/worker.py`) and has a connection to this process. Reports are taken from
rank 0; decisions for all of them, such as whether to save a state, are requested by all and made once here. On several
machines, the others take part by `tasks/launch/joining.py`.
"""

import gc
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from logging import getLogger
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

from dpr_core.config.base import StageConfig
from dpr_core.config.execution import LaunchConfig
from dpr_core.cores import usable_cores
from dpr_core.errors import DensePathError, UsageError
from dpr_core.text import escape_control
from tasks.launch.child_processes import environment, how_it_ended
from tasks.launch.doors import Door, door_for_machines, door_of_this_machine, receive, send
from tasks.launch.machines import Machine, free_port, joined
from tasks.local_home import DiskFullError, disk_full_error
from tasks.running.workspace import Workspace

SETTINGS = "accelerate.json"

BARRIERS = frozenset({"restore", "checkpoint", "written", "done"})
"""Requests that are answered once all ranks have made them."""

EXIT_SECONDS = 10.0
"""How long processes have to end by themselves."""

POLL_SECONDS = 1.0
"""Within this the end of a process is noticed, once it has broken the collectives of the others."""

LAST_LINES = 12

NO_DEFAULTS = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "debug": False}
"""In place of what `accelerate config` may have left in the user's home: it names GPUs, and other machines."""

ENDED = re.compile(r"^ *rank *: (\d+) .*?^ *exitcode *: (-?\d+) ", re.MULTILINE | re.DOTALL)
"""A process in what torch says of those that failed."""


def check_machine(name: str, launch: LaunchConfig) -> None:
    """Refuse what this machine has not got for its share of the processes."""
    if launch.machines > 1 and not launch.main_address:
        raise UsageError(
            f"{name}: {launch.machines} machines need execution.launch.main_address: the host name or IP address by "
            "which the others reach this one"
        )
    gpus = _gpus()
    if 0 < gpus < launch.on_each_machine:
        on = f" on {launch.machines} machines" if launch.machines > 1 else ""
        raise UsageError(
            f"{name}: execution.launch.processes is {launch.processes}{on}, but there is one process for each GPU and "
            f"this machine has {gpus}; set it to {gpus * launch.machines}"
        )


def has_gpus() -> bool:
    return _gpus() > 0


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _leave_the_gpu() -> None:
    """What an earlier stage left there for this process would be missing to the first of the others."""
    import torch

    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def launched(name: str, config: StageConfig, launch: LaunchConfig, work: Workspace) -> dict[str, float]:
    """Have the stage done by several processes; returns what the first one's body returns."""
    _leave_the_gpu()
    folder = work.scratch / "ranks"
    folder.mkdir(parents=True)
    threads: int | None = config.execution.threads  # type: ignore[attr-defined]
    several = launch.machines > 1
    with (
        door_for_machines(launch.main_port, work.store.home) if several else door_of_this_machine() as door,
        joined(name, launch, door, folder, threads=threads, gpus=has_gpus()) as others,
    ):
        port = free_port() if several else 0
        settings = folder / SETTINGS
        settings.write_text(json.dumps(NO_DEFAULTS), encoding="utf-8")
        for number, machine in enumerate(others, 1):
            send(machine.line, number=number, port=port, folder=str(folder))
        with started(command(launch, threads, settings, door.address, 0, port), folder / "launcher-0.log") as launcher:
            ranks = _Ranks(name, config, launch, work, folder, launcher, others)
            try:
                ranks.gather(door)
                return ranks.serve()
            finally:
                ranks.leave()


def command(
    launch: LaunchConfig, threads: int | None, settings: Path, address: str, machine: int, port: int
) -> list[str]:
    """What starts the processes of one machine. They find each other at this port of the first, or at any, which is 0,
    and the owner of the stage at the address."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    threads = threads or (int(said) if said.isdecimal() else usable_cores() // launch.on_each_machine)
    options = {
        "config_file": settings,
        "num_processes": launch.processes,
        "num_machines": launch.machines,
        "machine_rank": machine,
        "main_process_port": port,
        "num_cpu_threads_per_process": max(1, threads),
        "mixed_precision": "no",
        "dynamo_backend": "no",
    }
    # What Accelerate calls multi_gpu is several processes, on GPUs or not.
    parts = [sys.executable, "-P", "-m", "accelerate.commands.launch", "--multi_gpu"]
    parts += [part for option, value in options.items() for part in (f"--{option}", str(value))]
    if launch.machines > 1:
        parts += ["--main_process_ip", str(launch.main_address), "--same_network"]
    return [*parts, "-m", "tasks.launch.worker", address]


@contextmanager
def started(command: list[str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """In a session of its own: Ctrl-C is for this process, which knows what to do about all the others."""
    with log.open("wb") as output:
        launcher = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_unconfigured(environment())
            | {"PYTHONSAFEPATH": "1", "ACCELERATE_USE_CPU": str(not has_gpus()).lower()},
            start_new_session=True,
        )
    try:
        yield launcher
    finally:
        for end in (lambda: None, launcher.terminate, launcher.kill):
            end()
            with suppress(subprocess.TimeoutExpired):
                launcher.wait(EXIT_SECONDS)
                break


def _unconfigured(variables: dict[str, str]) -> dict[str, str]:
    """Without what would have Accelerate do more than start processes."""
    return {name: value for name, value in variables.items() if not name.startswith("ACCELERATE_")}


class _Ranks:
    """The processes of one stage, each with a line to it."""

    def __init__(
        self,
        name: str,
        config: StageConfig,
        launch: LaunchConfig,
        work: Workspace,
        folder: Path,
        launcher: "subprocess.Popen[bytes]",
        others: list[Machine],
    ) -> None:
        self.name = name
        self.config = config
        self.launch = launch
        self.count = launch.processes
        self.work = work
        self.folder = folder
        self.launcher = launcher
        self.others = others
        self._lines: dict[int, Connection] = {}
        self._fetched: dict[str, dict[str, Any]] = {}

    def gather(self, door: Door) -> None:
        """Take up the line of every process, and tell it what to do. Then nobody else is let in."""
        while len(self._lines) < self.count:
            ready = wait([door, *(machine.line for machine in self.others)], timeout=POLL_SECONDS)
            ended = [number for number, machine in enumerate(self.others, 1) if machine.line in ready]
            if self.launcher.poll() is not None:
                ended = [0]
            if ended:
                raise DensePathError(
                    f"{self.name}: its {self.count} processes could not be started{self._last(f'launcher-{ended[0]}')}"
                )
            if door not in ready or (admitted := door.admit()) is None:
                continue
            line, first = admitted
            if "rank" not in first:
                line.close()  # a machine more than are needed
                continue
            rank = first["rank"]
            self._lines[rank] = line
            send(
                line,
                stage=self.name,
                config=self.config.model_dump(mode="json"),
                inputs=self.work.inputs,
                output=str(self.work.output),
                scratch=str(self.work.scratch if rank == 0 else self.folder / str(rank)),
                log=str(self._log(rank)),
            )
        door.listening.close()

    def serve(self) -> dict[str, float]:
        """Until they are done; returns what they came to."""
        while True:
            request = self._barrier()
            match request["ask"]:
                case "restore":
                    folder = self.work.latest_state()
                    self._tell_all(None if folder is None else str(folder))
                case "checkpoint":
                    self.work.checkpoint_with(request["step"], self._write)
                    self._tell_all(None)
                case "done":
                    self._tell_all(None)
                    metrics: dict[str, float] = request["metrics"]
                    return metrics

    def leave(self) -> None:
        """Those that are still there end at once: without their lines they are nobody's."""
        for line in self._lines.values():
            line.close()

    def _write(self, folder: Path) -> None:
        """Have each of them write what it holds of the state."""
        self._tell_all(str(folder))
        if needed := self._barrier()["needed"]:
            raise DiskFullError(needed)

    def _tell_all(self, answer: str | None) -> None:
        for rank in self._lines:
            self._tell(rank, answer)

    def _tell(self, rank: int, answer: Any) -> None:
        try:
            send(self._lines[rank], answer=answer)
        except OSError:
            self._lost(rank)

    def _barrier(self) -> dict[str, Any]:
        """Serve the ranks until all make the same request; returns that of rank 0, with the room needed."""
        requests: dict[int, dict[str, Any]] = {}
        ranks = {line: rank for rank, line in self._lines.items()}
        machines = {machine.line: number for number, machine in enumerate(self.others, 1)}
        while len(requests) < self.count:
            for line in wait([*ranks, *machines]):
                assert isinstance(line, Connection)
                if line in machines:
                    self._left(machines[line])
                rank = ranks[line]
                try:
                    message = receive(line)
                except (EOFError, OSError):
                    self._lost(rank)
                if message["ask"] in BARRIERS:
                    requests[rank] = message
                else:
                    self._serve(rank, message)
        where = {(message["ask"], message.get("step")) for message in requests.values()}
        if len(where) > 1:
            raise DensePathError(f"{self.name}: its processes are not at the same place: {sorted(map(str, where))}")
        return {**requests[0], "needed": max(message.get("needed", 0) for message in requests.values())}

    def _serve(self, rank: int, message: dict[str, Any]) -> None:
        match message:
            case {"ask": "fetch", "id": run_id}:
                if run_id not in self._fetched:
                    artifact = self.work.artifact(run_id)
                    self._fetched[run_id] = asdict(artifact) | {"path": str(artifact.path)}
                self._tell(rank, self._fetched[run_id])
            case {"ask": "metrics", "values": values, "step": step}:
                self.work.metrics(values, step)
            case {"ask": "advance", "step": step, "total": total, "note": note, "at_most": at_most}:
                self.work.advance(step, total, note, at_most)
            case {"ask": "part", "what": what, "done": done, "total": total}:
                self.work.part(what, done, total)
            case {"ask": "table", "path": path, "rows": rows}:
                self.work.table(path, rows)
            case {"ask": "file", "local": local, "folder": folder}:
                self.work.file(Path(local), folder)
                self._tell(rank, None)
            case {"ask": "log", "logger": logger, "level": level, "text": text}:
                getLogger(logger).log(level, "%s", text)
            case {"ask": "failed", "kind": kind, "text": text}:
                self._failed(rank, kind, text)
            case _:
                raise AssertionError(f"rank {rank} asked for {message}")

    def _failed(self, rank: int, kind: str, text: str) -> NoReturn:
        """Raise what a process raised; of what it did not mean to, the process that caused it may be another."""
        if kind == "UsageError":
            raise UsageError(text)
        if kind == "DensePathError":
            raise DensePathError(text)
        if kind == DiskFullError.__name__:
            raise disk_full_error(self.work.store.home)
        until = time.monotonic() + POLL_SECONDS
        others = {line: other for other, line in self._lines.items() if other != rank}
        while (left := until - time.monotonic()) > 0:
            for line in wait(list(others), timeout=left):
                try:
                    receive(line)  # type: ignore[arg-type]
                except (EOFError, OSError):
                    self._lost(others[line])  # type: ignore[index]
        raise DensePathError(
            f"{self.name}: rank {rank} of its {self.count} processes failed: {kind}: {text}{self._last(rank)}"
        )

    def _lost(self, rank: int) -> NoReturn:
        """A process has ended that should not have."""
        number = rank // self.launch.on_each_machine
        if number:
            wait([self.others[number - 1].line], timeout=EXIT_SECONDS)
        else:
            with suppress(subprocess.TimeoutExpired):
                self.launcher.wait(EXIT_SECONDS)
        log = self.folder / f"launcher-{number}.log"
        statuses = dict(ENDED.findall(log.read_text(encoding="utf-8", errors="replace")))
        end = how_it_ended(int(statuses[str(rank)])) if str(rank) in statuses else "ended without a word"
        raise DensePathError(f"{self.name}: rank {rank} of its {self.count} processes {end}{self._last(rank)}")

    def _left(self, number: int) -> NoReturn:
        """The processes of another machine have all ended, or that machine has left."""
        first = number * self.launch.on_each_machine
        try:
            receive(self.others[number - 1].line)
        except (EOFError, OSError):
            raise DensePathError(
                f"{self.name}: machine {self.others[number - 1].host}, of ranks {first} to "
                f"{first + self.launch.on_each_machine - 1}, has left{self._last(f'launcher-{number}')}"
            ) from None
        self._lost(first)

    def _log(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.log"

    def _last(self, who: int | str) -> str:
        """The end of what a process wrote to its standard error, as an addition to a message."""
        file = self._log(who) if isinstance(who, int) else self.folder / f"{who}.log"
        with suppress(OSError):
            if lines := file.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]:
                return "; its last words:\n" + "\n".join(f"  {escape_control(line)}" for line in lines)
        return ""
