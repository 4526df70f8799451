"""The process that holds vLLM: how it is started, what ends it, and what is said when it cannot be."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dpr_core.config.rollouts import VllmExecutionConfig
from dpr_core.errors import DensePathError, UsageError
from dpr_core.rollouts import vllm_supervisor
from dpr_core.rollouts.vllm_server import ENVIRONMENT_VARIABLE, ManagedServer, check_settings, python_interpreter

FAKE = """
import http.server, json, os, socketserver, subprocess, sys
print("arguments", json.dumps(sys.argv[1:]))
print("variables", os.environ["VLLM_SERVER_DEV_MODE"], os.environ.get("KEPT"))
print("not for it", [name for name, value in os.environ.items() if value == "ours"], flush=True)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def address_string(self):
        return "socket"
socketserver.ThreadingUnixStreamServer(sys.argv[sys.argv.index("--uds") + 1], Handler).serve_forever()
"""


@pytest.fixture
def python(tmp_path: Path) -> Callable[[str], Path]:
    """`python(program)` -> an interpreter that runs the program in place of the module that it is told to run."""

    def build(program: str) -> Path:
        (tmp_path / "vllm.py").write_text(program)
        script = tmp_path / "python"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path / "vllm.py"} "$@"\n')
        script.chmod(0o755)
        return script

    return build


@pytest.fixture
def server(python: Callable[[str], Path], tmp_path: Path) -> Iterator[ManagedServer]:
    running = ManagedServer(python(FAKE), ["--dtype", "float32"], tmp_path / "vllm.log", seconds=60)
    yield running
    running.close()


def _group(leader: int) -> list[int]:
    """The living processes of a group."""
    listed = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True).stdout
    rows = (line.split() for line in listed.splitlines())
    return sorted(int(pid) for pid, group, state in rows if int(group) == leader and not state.startswith("Z"))


def _gone(leader: int) -> bool:
    until = time.monotonic() + 30
    while _group(leader) and time.monotonic() < until:
        time.sleep(0.1)
    return not _group(leader)


def test_it_is_started_with_the_weights_on_a_socket_of_its_own(
    server: ManagedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEPT", "kept")
    for name in ("PYTHONPATH", "VLLM_API_KEY", "RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.setenv(name, "ours")
    server.start(tmp_path / "weights")
    log = (tmp_path / "vllm.log").read_text()
    assert f'"vllm.entrypoints.openai.api_server", "--model", "{tmp_path / "weights"}", "--uds"' in log
    assert '"--dtype", "float32"' in log
    assert "variables 1 kept" in log, "the weights' endpoints are on"
    assert "not for it []" in log, "neither our packages, nor a key, nor our place among processes"
    socket = server.connection().socket
    assert socket is not None
    assert socket.parent.stat().st_mode & 0o777 == 0o700
    assert server.connection().is_healthy()
    first = server._process
    server.start(tmp_path / "weights")
    assert server._process is first


def test_nothing_is_left_when_it_is_closed(server: ManagedServer, tmp_path: Path) -> None:
    server.start(tmp_path)
    process, folder = server._process, server._socket.parent
    assert process is not None
    assert len(_group(process.pid)) == 3, "the supervisor, the server and what it has started"
    server.close()
    assert _gone(process.pid)
    assert not folder.exists()
    server.close()


def test_what_it_has_started_ends_with_it_and_another_is_started(server: ManagedServer, tmp_path: Path) -> None:
    server.start(tmp_path)
    process = server._process
    assert process is not None
    os.kill(_group(process.pid)[1], signal.SIGKILL)
    assert _gone(process.pid)
    server.start(tmp_path)
    assert server._process is not process
    assert server.connection().is_healthy()


def test_it_ends_with_whoever_started_it_even_by_sigkill(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    command = [
        sys.executable,
        vllm_supervisor.__file__,
        str(folder),
        sys.executable,
        "-c",
        "import time; time.sleep(600)",
    ]
    starter = (
        "import subprocess, time\n"
        f"child = subprocess.Popen({command!r}, stdin=subprocess.PIPE, start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        kept = int(process.stdout.readline())
        until = time.monotonic() + 30
        while len(_group(kept)) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        assert len(_group(kept)) == 2
        process.kill()
    assert _gone(kept)
    assert not folder.exists()


def test_one_that_ends_at_once_is_quoted_with_nothing_that_steers_a_terminal(
    python: Callable[[str], Path], tmp_path: Path
) -> None:
    broken = python("import sys; sys.exit('no CUDA here \\x1b[2J')")
    server = ManagedServer(broken, [], tmp_path / "vllm.log", seconds=60)
    with pytest.raises(DensePathError, match="ended before it answered") as raised:
        server.start(tmp_path)
    assert "no CUDA here ⟨U+001B⟩[2J" in str(raised.value)


def test_one_that_never_answers_is_given_up(python: Callable[[str], Path], tmp_path: Path) -> None:
    server = ManagedServer(python("import time; time.sleep(600)"), [], tmp_path / "vllm.log", seconds=1)
    with pytest.raises(DensePathError, match="did not answer within 1 seconds"):
        server.start(tmp_path)
    assert server._process is None


def test_the_environment_is_looked_for_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    with pytest.raises(UsageError, match=r"set rollouts.execution.python, or DENSE_PATH_VLLM"):
        check_settings(VllmExecutionConfig())
    with pytest.raises(UsageError, match=r"rollouts.execution.python: there is no Python interpreter at /nowhere"):
        check_settings(VllmExecutionConfig(python="/nowhere"))
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path))
    with pytest.raises(UsageError, match="DENSE_PATH_VLLM: there is no"):
        check_settings(VllmExecutionConfig())
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    assert python_interpreter(VllmExecutionConfig()) == tmp_path / "bin" / "python"
    with pytest.raises(UsageError, match="'ftp://x' is no address"):
        check_settings(VllmExecutionConfig(url="ftp://x"))
    with pytest.raises(UsageError, match="NO_SUCH_KEY"):
        check_settings(VllmExecutionConfig(url="http://127.0.0.1:8000", api_key_variable="NO_SUCH_KEY"))
    check_settings(VllmExecutionConfig(url="http://127.0.0.1:8000"))
