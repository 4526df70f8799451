"""vLLM servers: one that the stage starts and stops itself, or an external one at a URL."""

import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Protocol

import httpx

from dpr_core.config.rollouts import VllmExecutionConfig
from dpr_core.errors import DensePathError, UsageError
from dpr_core.files import expanded
from dpr_core.redaction import read_key
from dpr_core.rollouts import vllm_supervisor
from dpr_core.text import escape_control_lines

ENVIRONMENT_VARIABLE = "DENSE_PATH_VLLM"
"""The environment variable with the folder of vLLM's virtual environment."""

LOG_TAIL_LINES = 15
"""Lines of a failed server's log that messages show."""

EXCLUDED_VARIABLES = (
    # The path to this project's packages.
    *("PYTHONPATH", "VIRTUAL_ENV"),
    # Would make the server require a key.
    "VLLM_API_KEY",
    # The rendezvous of a distributed stage, which torch in the server would try to join.
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    "TORCHELASTIC_USE_AGENT_STORE",
)
"""Environment variables that a managed server does not inherit."""

POLL_SECONDS = 0.2
"""Interval of health checks while a server starts."""

FAILURE_SETTLE_SECONDS = 5.0
"""Wait after a failure, since a failing server may still report that it is healthy."""


@dataclass(frozen=True)
class Connection:
    """The address of a server: URL, Unix socket and headers."""

    url: str
    socket: Path | None = None
    """A Unix socket, in place of TCP."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def client(self, timeout: float) -> httpx.Client:
        transport = httpx.HTTPTransport(uds=str(self.socket), verify=_tls()) if self.socket else None
        return httpx.Client(
            base_url=self.url, headers=self.headers, transport=transport, timeout=timeout, verify=_tls()
        )

    def async_client(self, timeout: float, at_once: int) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=at_once, max_keepalive_connections=at_once)
        transport = (
            httpx.AsyncHTTPTransport(uds=str(self.socket), limits=limits, verify=_tls()) if self.socket else None
        )
        return httpx.AsyncClient(
            base_url=self.url,
            headers=self.headers,
            transport=transport,
            limits=limits,
            timeout=timeout,
            verify=_tls(),
        )

    def is_healthy(self) -> bool:
        """Whether GET /health succeeds."""
        try:
            with self.client(timeout=5.0) as client:
                return client.get("/health").status_code == 200
        except httpx.TransportError:
            return False


class VllmServer(Protocol):
    """A server whose failures the engine can recover from."""

    name: str
    """For messages."""

    managed: bool
    """Whether this process starts and stops it."""

    def start(self, weights: Path) -> None:
        """Wait until the server is healthy; a managed one that is not running is started with these weights."""

    def connection(self) -> Connection: ...

    def mark_failed(self) -> None:
        """Note a failure: stop a managed server, or give an external one time to restart."""

    def log_tail(self) -> str:
        """The end of the server's log, where it is accessible."""

    def close(self) -> None: ...


class ManagedServer:
    """A vLLM subprocess that ends with this process. It listens on a Unix socket in a private folder, since access to a
    server with weight updates allows arbitrary code."""

    managed = True

    def __init__(self, python: Path, options: Sequence[str], log: Path, seconds: float) -> None:
        self.name = "the vLLM server of this stage"
        self._python = python
        self._options = list(options)
        self._log = log
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._socket = Path()

    def start(self, weights: Path) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        folder = Path(tempfile.mkdtemp(prefix="dense-path-vllm-"))
        self._socket = folder / "http"
        serve = [str(self._python), "-P", "-m", "vllm.entrypoints.openai.api_server", "--model", str(weights)]
        with self._log.open("ab") as log:
            process = self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    vllm_supervisor.__file__,
                    str(folder),
                    *serve,
                    "--uds",
                    str(self._socket),
                    *self._options,
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(folder),
                start_new_session=True,
            )
        until = time.monotonic() + self._seconds
        while not self.connection().is_healthy():
            ended = process.poll() is not None
            if ended or time.monotonic() > until:
                self.close()
                outcome = "ended before it answered" if ended else f"did not answer within {self._seconds:g} seconds"
                raise DensePathError(f"vLLM, started with {self._python}, {outcome}. {self.log_tail()}")
            time.sleep(POLL_SECONDS)

    def connection(self) -> Connection:
        return Connection("http://vllm", self._socket)

    def mark_failed(self) -> None:
        self.close()

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
        shutil.rmtree(self._socket.parent, ignore_errors=True)

    def log_tail(self) -> str:
        lines = self._log.read_bytes().decode("utf-8", "replace").splitlines()[-LOG_TAIL_LINES:]
        return "Its last lines:\n" + "\n".join(escape_control_lines(line) for line in lines)


class ExternalServer:
    """A server that is run by others, with access to this machine's files."""

    managed = False

    def __init__(self, settings: VllmExecutionConfig) -> None:
        assert settings.url is not None
        self.name = self._url = settings.url.rstrip("/").removesuffix("/v1")
        self._variable = settings.api_key_variable
        self._seconds = settings.start_seconds
        self._was_healthy = False

    def start(self, weights: Path) -> None:
        until = time.monotonic() + (self._seconds if self._was_healthy else 0.0)
        while not self.connection().is_healthy():
            if time.monotonic() > until:
                waited = f" for {self._seconds:g} seconds" if self._was_healthy else ""
                raise DensePathError(
                    f"the vLLM server at {self._url} does not answer{waited}; start it, with VLLM_SERVER_DEV_MODE=1, "
                    "or check rollouts.execution.url"
                )
            time.sleep(POLL_SECONDS)
        self._was_healthy = True

    def connection(self) -> Connection:
        headers = {"Authorization": f"Bearer {api_key(self._variable)}"} if self._variable else {}
        return Connection(self._url, headers=headers)

    def mark_failed(self) -> None:
        time.sleep(FAILURE_SETTLE_SECONDS)

    def log_tail(self) -> str:
        return "Its own log says more."

    def close(self) -> None:
        pass


def python_interpreter(settings: VllmExecutionConfig) -> Path:
    """The Python interpreter of vLLM's environment, from the settings or the environment variable."""
    folder = os.environ.get(ENVIRONMENT_VARIABLE)
    if settings.python is None and not folder:
        raise UsageError(
            "rollouts of type vllm need an environment with vLLM: set rollouts.execution.python, or "
            f"{ENVIRONMENT_VARIABLE} to its folder (`make install-vllm` makes one for the CPU), or "
            "rollouts.execution.url to a server that runs"
        )
    python = expanded(settings.python or f"{folder}/bin/python").absolute()
    if not os.access(python, os.X_OK):
        where = "rollouts.execution.python" if settings.python else ENVIRONMENT_VARIABLE
        raise UsageError(f"{where}: there is no Python interpreter at {python}")
    return python


def api_key(variable: str) -> str:
    """The API key in an environment variable, read at each use so that no object holds it."""
    try:
        key = read_key(variable)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not key:
        raise UsageError(f"the environment variable {variable}, which should hold the vLLM server's key, holds none")
    return key


def check_settings(settings: VllmExecutionConfig) -> None:
    """UsageError for settings that cannot work, before any work is done."""
    if settings.url is None:
        python_interpreter(settings)
        return
    if httpx.URL(settings.url).scheme not in ("http", "https") or not httpx.URL(settings.url).host:
        raise UsageError(f"rollouts.execution.url: {settings.url!r} is no address, such as http://127.0.0.1:8000")
    if settings.api_key_variable is not None:
        api_key(settings.api_key_variable)


@cache
def _tls() -> ssl.SSLContext:
    """A shared TLS context: loading all certificates takes longer than most requests."""
    return httpx.create_ssl_context()


def _environment(folder: Path) -> dict[str, str]:
    """The environment of a managed server: weight endpoints on, hub access and usage statistics off."""
    inherited = {name: value for name, value in os.environ.items() if name not in EXCLUDED_VARIABLES}
    own = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_RPC_BASE_PATH": str(folder)}
    return {**inherited, **own, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
