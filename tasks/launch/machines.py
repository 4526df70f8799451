"""The rendezvous of several machines, on the first one: it admits the others, each with a `dpr join` (`joining.py`)."""

import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging import getLogger
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from dpr_core.config.execution import LaunchConfig
from dpr_core.errors import DensePathError
from dpr_core.text import escape_control
from tasks.artifacts.identity import library_versions
from tasks.launch.doors import HANDSHAKE_SECONDS, Door, receive, send

logger = getLogger("dense_path")


class Machine(NamedTuple):
    """One that has joined."""

    line: Connection
    host: str


@contextmanager
def joined(name: str, launch: LaunchConfig, door: Door, folder: Path, **task: Any) -> Iterator[list[Machine]]:
    """As many others as the stage needs, once all have joined. At the end of the block they may go."""
    machines: list[Machine] = []
    try:
        if launch.machines > 1:
            _gather(machines, name, launch, door, folder, task)
        yield machines
    finally:
        for machine in machines:
            machine.line.close()


def _gather(
    machines: list[Machine], name: str, launch: LaunchConfig, door: Door, folder: Path, task: dict[str, Any]
) -> None:
    shared, token = folder / "shared", secrets.token_hex()
    shared.write_text(token, encoding="ascii")
    task |= {"stage": name, "launch": launch.model_dump(mode="json"), "versions": library_versions()}
    task |= {"shared": str(shared), "token": token}
    deadline = time.monotonic() + 60 * launch.join_minutes
    how = f"dpr join {launch.main_address}:{launch.main_port}"
    logger.info("%s: waits for %d other machines, on each of which is to run: %s", name, launch.machines - 1, how)
    while (missing := launch.machines - 1 - len(machines)) > 0:
        if (left := deadline - time.monotonic()) <= 0:
            raise DensePathError(
                f"{name}: {missing} of its {launch.machines} machines have not joined within {launch.join_minutes:g} "
                f"minutes (execution.launch.join_minutes); run there, with this DPR_HOME: {how}"
            )
        ready = wait([door, *(machine.line for machine in machines)], timeout=left)
        for machine in [machine for machine in machines if machine.line in ready]:
            # It has nothing to say now: it has left.
            machines.remove(machine)
        if door in ready and (machine := _met(name, door, task)):
            machines.append(machine)


def _met(name: str, door: Door, task: dict[str, Any]) -> Machine | None:
    if (met := door.admit()) is None:
        logger.warning("%s: somebody who does not know this DPR_HOME's secret was not let in", name)
        return None
    line, first = met
    with suppress(EOFError, OSError):
        send(line, **task)
        if line.poll(HANDSHAKE_SECONDS):
            host, unfit = escape_control(str(first.get("machine"))), receive(line)["unfit"]
            if unfit is None:
                logger.info("%s: %s has joined", name, host)
                return Machine(line, host)
            logger.warning("%s: %s cannot join: %s", name, host, escape_control(unfit))
    line.close()
    return None


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
