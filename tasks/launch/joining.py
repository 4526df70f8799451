"""`dpr join`, the rendezvous on every machine but the first: it starts this machine's ranks of each stage."""

import socket
import time
from logging import getLogger
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from dpr_core.config.execution import LaunchConfig
from dpr_core.errors import DensePathError, UsageError
from tasks.artifacts.identity import library_versions
from tasks.launch.doors import knock, receive, send
from tasks.launch.launcher import POLL_SECONDS, SETTINGS, check_machine, command, has_gpus, started
from tasks.local_home import open_home

RETRY_SECONDS = 2.0
"""From one attempt to join to the next: between stages nobody listens."""

logger = getLogger("dense_path")


def join(address: str, once: bool) -> None:
    """Do the share of this machine in every stage that is done there; with `once`, in the next alone."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"{address} is not HOST:PORT, such as 10.0.0.1:29555")
    home = open_home()
    logger.info("waiting for stages of %s; end with Ctrl-C", address)
    while True:
        try:
            line = knock(address, home)
        except (EOFError, OSError):
            time.sleep(RETRY_SECONDS)
            continue
        with line:
            if _shared(line, address) and once:
                return
        time.sleep(RETRY_SECONDS)


def _shared(line: Connection, address: str) -> bool:
    """Whether a stage was begun with this machine."""
    try:
        send(line, machine=socket.gethostname())
        task = receive(line)
        unfit = _unfit(task)
        send(line, unfit=unfit)
        if unfit is not None:
            raise UsageError(unfit)
        logger.info("%s: joined", task["stage"])
        begin = receive(line)
    except (EOFError, OSError):
        return False
    launch, number = LaunchConfig.model_validate(task["launch"]), begin["number"]
    folder = Path(begin["folder"])
    parts = command(launch, task["threads"], folder / SETTINGS, address, number, begin["port"])
    with started(parts, folder / f"launcher-{number}.log") as launcher:
        try:
            while launcher.poll() is None and not wait([line], timeout=POLL_SECONDS):
                pass
            if launcher.returncode is not None:
                _told(line, launcher.returncode)
        except BaseException:
            line.close()  # so that the first machine ends all of them, and this one need not wait for its own
            raise
    logger.info("%s: over", task["stage"])
    return True


def _told(line: Connection, status: int) -> None:
    """Say that the processes of this machine have ended, and wait until all the others have."""
    try:
        send(line, ended=status)
        wait([line])
    except OSError:
        pass


def _unfit(task: dict[str, Any]) -> str | None:
    """Why this machine cannot do its share."""
    shared = Path(task["shared"])
    try:
        seen = shared.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        seen = None
    if seen != task["token"]:
        return (
            f"{shared} is not what the first machine wrote there; DPR_HOME has to be on a file system that all "
            "machines share, in the same place on each"
        )
    ours, theirs = library_versions(), task["versions"]
    if other := sorted(name for name in theirs if ours.get(name) != theirs[name]):
        name = other[0]
        return f"{name} is {ours.get(name)} here, but {theirs[name]} on the first machine; install the same versions"
    if has_gpus() != task["gpus"]:
        return f"GPUs: {'there are some' if has_gpus() else 'there is none'} here, unlike on the first machine"
    try:
        check_machine(task["stage"], LaunchConfig.model_validate(task["launch"]))
    except DensePathError as error:
        return str(error)
    return None
