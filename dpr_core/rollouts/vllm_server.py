"""Where vLLM is: a server that the stage starts and ends itself, or one that runs already."""

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
from dpr_core.rollouts import vllm_supervisor
from dpr_core.text import escape_control_lines

ENVIRONMENT = "DENSE_PATH_VLLM"
"""The environment variable that names the folder of vLLM's virtual environment."""

LAST_LINES = 15
"""Of a server's log, so many are shown when it has failed."""

NOT_ITS_OWN = (
    # The path to our packages.
    *("PYTHONPATH", "VIRTUAL_ENV"),
    # A key that it would ask us for.
    "VLLM_API_KEY",
    # Our place among processes that share the stage: with the last one, torch would wait for a server of theirs.
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    "TORCHELASTIC_USE_AGENT_STORE",
)
"""Environment variables of ours that a server of our own does not get."""

SECONDS_BETWEEN_LOOKS = 0.2

SECONDS_TO_FALL = 5.0
"""A server that has failed may say for a while that it is well."""


@dataclass(frozen=True)
class Connection:
    """How a server is reached."""

    url: str
    socket: Path | None = None
    """In place of the network."""
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

    def answers(self) -> bool:
        """Whether the server says that it is well."""
        try:
            with self.client(timeout=5.0) as client:
                return client.get("/health").status_code == 200
        except httpx.TransportError:
            return False


class VllmServer(Protocol):
    name: str
    """For messages."""

    own: bool
    """Whether the stage started it, for this policy alone."""

    def start(self, weights: Path) -> None:
        """Return when it answers. One that is not there is started with these weights, if it is for us to start."""

    def connection(self) -> Connection: ...

    def dead(self) -> None:
        """It failed: what answers next is another one, or the same after a restart by whoever runs it."""

    def last_lines(self) -> str:
        """What it said before it failed, where that can be seen from here."""

    def close(self) -> None: ...


class OwnServer:
    """vLLM in a process that ends with this one. It listens on a socket in a folder that no other user may enter, since
    who reaches a server that takes weights can have it do anything."""

    own = True

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
                env=_variables(folder),
                start_new_session=True,
            )
        until = time.monotonic() + self._seconds
        while not self.connection().answers():
            ended = process.poll() is not None
            if ended or time.monotonic() > until:
                self.close()
                said = "ended before it answered" if ended else f"did not answer within {self._seconds:g} seconds"
                raise DensePathError(f"vLLM, started with {self._python}, {said}. {self.last_lines()}")
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def connection(self) -> Connection:
        return Connection("http://vllm", self._socket)

    def dead(self) -> None:
        self.close()

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
        shutil.rmtree(self._socket.parent, ignore_errors=True)

    def last_lines(self) -> str:
        lines = self._log.read_bytes().decode("utf-8", "replace").splitlines()[-LAST_LINES:]
        return "Its last lines:\n" + "\n".join(escape_control_lines(line) for line in lines)


class RunningServer:
    """A server that someone else runs, with access to the files of this machine."""

    own = False

    def __init__(self, settings: VllmExecutionConfig) -> None:
        assert settings.url is not None
        self.name = self._url = settings.url.rstrip("/").removesuffix("/v1")
        self._variable = settings.api_key_variable
        self._seconds = settings.start_seconds
        self._has_answered = False

    def start(self, weights: Path) -> None:
        until = time.monotonic() + (self._seconds if self._has_answered else 0.0)
        while not self.connection().answers():
            if time.monotonic() > until:
                waited = f" for {self._seconds:g} seconds" if self._has_answered else ""
                raise DensePathError(
                    f"the vLLM server at {self._url} does not answer{waited}; start it, with VLLM_SERVER_DEV_MODE=1, "
                    "or check rollouts.execution.url"
                )
            time.sleep(SECONDS_BETWEEN_LOOKS)
        self._has_answered = True

    def connection(self) -> Connection:
        headers = {"Authorization": f"Bearer {key_in(self._variable)}"} if self._variable else {}
        return Connection(self._url, headers=headers)

    def dead(self) -> None:
        time.sleep(SECONDS_TO_FALL)

    def last_lines(self) -> str:
        return "Its own log says more."

    def close(self) -> None:
        pass


def python_of(settings: VllmExecutionConfig) -> Path:
    """The interpreter that the settings or the environment name."""
    folder = os.environ.get(ENVIRONMENT)
    if settings.python is None and not folder:
        raise UsageError(
            "rollouts of type vllm need an environment with vLLM: set rollouts.execution.python, or "
            f"{ENVIRONMENT} to its folder (`make install-vllm` makes one for the CPU), or rollouts.execution.url to a "
            "server that runs"
        )
    python = Path(settings.python) if settings.python else Path(str(folder)) / "bin" / "python"
    python = python.expanduser().absolute()
    if not os.access(python, os.X_OK):
        where = "rollouts.execution.python" if settings.python else ENVIRONMENT
        raise UsageError(f"{where}: there is no Python interpreter at {python}")
    return python


def key_in(variable: str) -> str:
    """Read at each use, so that no object of ours holds it."""
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(f"the environment variable {variable}, which should hold the vLLM server's key, holds none")
    return key


def check(settings: VllmExecutionConfig) -> None:
    """Raise what can be seen before any work is done."""
    if settings.url is None:
        python_of(settings)
        return
    if httpx.URL(settings.url).scheme not in ("http", "https") or not httpx.URL(settings.url).host:
        raise UsageError(f"rollouts.execution.url: {settings.url!r} is no address, such as http://127.0.0.1:8000")
    if settings.api_key_variable is not None:
        key_in(settings.api_key_variable)


@cache
def _tls() -> ssl.SSLContext:
    """Reading all certificates takes longer than most requests."""
    return httpx.create_ssl_context()


def _variables(folder: Path) -> dict[str, str]:
    """Ours, without what is not for it; the weights' endpoints on, the network and statistics off."""
    kept = {name: value for name, value in os.environ.items() if name not in NOT_ITS_OWN}
    own = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_RPC_BASE_PATH": str(folder)}
    return {**kept, **own, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
