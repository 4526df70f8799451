"""An embedded Prefect server, temporary, one a run, with its files in `DPR_HOME`."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from threading import Thread

from tasks.libraries import load
from tasks.local_home import disk_full_error

NEEDED_BYTES = 32 * 2**20
"""Prefect's own database takes a few MB; without them its server does not start, and does not say why."""

_watchdogs: "list[subprocess.Popen[bytes]]" = []
"""Held as long as this process lives."""


def prepare(home: Path, debug: bool = False) -> None:
    """Set Prefect up before it is first imported. A server named in PREFECT_API_URL is used instead, untouched."""
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    # The command line reports errors itself, in a sentence; Prefect would print a traceback.
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO" if debug else "CRITICAL")
    os.environ.setdefault("PREFECT_INTERNAL_LOGGING_LEVEL", "ERROR" if debug else "CRITICAL")
    if os.environ.get("PREFECT_API_URL"):
        return
    if shutil.disk_usage(home).free < NEEDED_BYTES:
        raise disk_full_error(home)
    os.environ.setdefault("PREFECT_HOME", str(home / "prefect"))
    os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    # One that is gone stays so, and nothing depends on what it is told.
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "1")
    os.environ.setdefault("PREFECT_API_REQUEST_TIMEOUT", "30")


@contextmanager
def starting_server() -> Iterator[None]:
    """Start the temporary server, unless there is another, while the block does something else. It answers, or is
    known to be lost, at the block's end; where the block fails it is given up."""
    load("prefect.events.worker", "prefect.server.api.server", "flows.pipeline")
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()
    before, started = server.server_process, Future[None]()

    def start() -> None:
        try:
            started.set_result(start_server())
        except BaseException as error:
            started.set_exception(error)

    # A daemon, since one that hangs is waited for for minutes.
    Thread(target=copy_context().run, args=(start,), daemon=True).start()
    try:
        yield
    except BaseException:
        while not started.done() and server.server_process is before:
            time.sleep(0.05)
        if server.server_process is not None and server.server_process is not before:
            server.server_process.kill()
        raise
    started.result()


def start_server() -> None:
    """Start the temporary server, unless there is another.

    A terminal sends Ctrl-C, and its own end, to all processes. The server must live on until the flow has reported its
    end.
    """
    from prefect.events.clients import PrefectEventsClient
    from prefect.events.worker import EventsWorker
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import PREFECT_API_URL

    from tasks.prefect_task import AWAY, lose

    if PREFECT_API_URL.value():
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        server = SubprocessASGIServer()
        server.start()
        if server.server_process is not None:
            _watchdogs.append(_end_with_this_process(server.server_process.pid))
        EventsWorker.set_client_override(PrefectEventsClient, api_url=server.api_url, reconnection_attempts=2)
    except AWAY as error:
        lose(error)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_this_process(server: int) -> "subprocess.Popen[bytes]":
    """Even after `kill -9` of this process: the kernel closes its end of the pipe, and the shell reads on."""
    return subprocess.Popen(
        ["sh", "-c", 'read -r _; kill "$0"', str(server)], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
