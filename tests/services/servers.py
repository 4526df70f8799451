"""Real servers on free ports of the loopback interface, each of which can be stopped and started again."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

POSTGRESQL = Path("/usr/lib/postgresql/15/bin")
PASSWORD = "se%2Fcret"
START_SECONDS = 120.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A process that listens on a port. With `end`, that signal makes it end all that it started by itself."""

    def __init__(
        self,
        command: list[str],
        log: Path,
        ready: Callable[[], bool],
        *,
        end: signal.Signals | None = None,
        user: str | None = None,
    ) -> None:
        self._command = command
        self._log = log
        self._ready = ready
        self._end = end
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return when it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, start_new_session=True, **_identity(self._user)
            )
        until = time.monotonic() + START_SECONDS
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{self._command[0]} did not start:\n{self._log.read_text()[-3000:]}")
            time.sleep(0.1)

    def send(self, number: int) -> None:
        """Send a signal to it and all that it started."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def stop(self, number: signal.Signals | None = None) -> None:
        """End it, and return when it has ended."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self.send(signal.SIGCONT)
            if self._end is None:
                self.send(number or signal.SIGTERM)
            else:
                os.kill(self._process.pid, number or self._end)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self._process.wait()
        self._process = None


@contextmanager
def running(server: Server) -> Iterator[Server]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def postgresql(*databases: str) -> Iterator[tuple[Server, str]]:
    """PostgreSQL with empty databases, and what comes before their names in an address: user, password, place."""
    if not (POSTGRESQL / "initdb").exists():
        pytest.skip(f"there is no PostgreSQL 15 in {POSTGRESQL}: apt-get install postgresql-15")
    user = "nobody" if os.getuid() == 0 else None
    # Not below pytest's own folder, which another user may not enter.
    folder = Path(tempfile.mkdtemp(prefix="dense-path-postgresql-"))
    port = free_port()
    try:
        (folder / "password").write_text("se/cret")
        if user is not None:
            entry = pwd.getpwnam(user)
            for path in (folder, folder / "password"):
                os.chown(path, entry.pw_uid, entry.pw_gid)
        make = [POSTGRESQL / "initdb", "-D", folder / "data", "-U", "owner", "--pwfile", folder / "password"]
        make += ["--auth=scram-sha-256", "--no-sync", "--encoding=UTF8", "--locale=C"]
        subprocess.run(map(str, make), check=True, capture_output=True, cwd=folder, **_identity(user))
        command = [str(POSTGRESQL / "postgres"), "-D", str(folder / "data"), "-p", str(port), "-k", str(folder)]

        def ready() -> bool:
            check = [str(POSTGRESQL / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
            return subprocess.run(check).returncode == 0

        # At SIGTERM it would wait until nobody is connected any more.
        server = Server(command, folder.with_suffix(".log"), ready, end=signal.SIGINT, user=user)
        with running(server):
            create = [str(POSTGRESQL / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "owner"]
            for database in databases:
                subprocess.run([*create, database], check=True, env={**os.environ, "PGPASSWORD": "se/cret"})
            yield server, f"owner:{PASSWORD}@127.0.0.1:{port}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".log").unlink(missing_ok=True)


def mlflow_server(folder: Path, *options: str) -> tuple[Server, str]:
    """An MLflow server, not started, and its address."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    quiet = ["env", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false", "DO_NOT_TRACK=true"]
    log = folder / "server.log"
    return Server([*quiet, *command, *options], log, lambda: answers(f"{address}/health")), address


def s3_server(folder: Path) -> tuple[Server, str]:
    """Moto's S3, not started, and its address. What it holds is lost when it ends; stop it with SIGSTOP."""
    address = f"http://127.0.0.1:{(port := free_port())}"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    return Server(command, folder / "s3.log", lambda: answers(f"{address}/moto-api/")), address


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _identity(user: str | None) -> dict[str, object]:
    return {} if user is None else {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
