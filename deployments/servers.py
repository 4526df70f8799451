"""Process supervision: servers on the loopback interface, started, found again and ended, by whichever process asks."""

import os
import pwd
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

POSTGRESQL = Path("/usr/lib/postgresql/15/bin")
START_SECONDS = 300.0
STOP_SECONDS = 30.0

MARK = "DENSE_PATH_SERVER"
"""The variable by which all processes of a server are known, whatever session they are in: it holds its log's path."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A process that runs until it is ended. With `end`, that signal makes it end all that it started by itself."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        ready: Callable[[], bool],
        *,
        environment: Mapping[str, str] | None = None,
        end: signal.Signals | None = None,
        user: str | None = None,
    ) -> None:
        self.log = log
        self._command = list(command)
        self._ready = ready
        self._environment = environment
        self._end = end
        self._user = user
        self._pid = log.with_suffix(".pid")
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return when it answers."""
        self.begin()
        self.wait()

    def begin(self) -> None:
        inherited = os.environ if self._environment is None else self._environment
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**inherited, MARK: str(self.log)},
                **_identity(self._user),
            )
        self._pid.write_text(str(self._child.pid))

    def wait(self) -> None:
        """Return when it answers."""
        until = time.monotonic() + START_SECONDS
        while not self._ready():
            if self.main() is None or time.monotonic() > until:
                raise RuntimeError(f"{self._command[0]} did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.1)

    def main(self) -> psutil.Process | None:
        """The process that was started, while it lives."""
        with suppress(psutil.Error, OSError, ValueError):
            # One that was started a moment ago has no environment yet to be known by.
            if self._child is not None and self._child.poll() is None:
                return psutil.Process(self._child.pid)
            process = psutil.Process(int(self._pid.read_text()))
            if process.environ().get(MARK) == str(self.log):
                return process
        return None

    def processes(self) -> list[psutil.Process]:
        """It and all that it started."""
        main = self.main()
        found = [] if main is None else [main]
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process != main and process.environ().get(MARK) == str(self.log):
                    found.append(process)
        return found

    def send(self, number: int) -> None:
        """Send a signal to it and all that it started."""
        _send(self.processes(), number)

    def stop(self, number: signal.Signals | None = None) -> None:
        """End it and all that it started, and return when they have ended."""
        processes = self.processes()
        _send(processes, signal.SIGCONT)
        main = self.main()
        _send([main] if main and self._end else processes, number or self._end or signal.SIGTERM)
        psutil.wait_procs(processes, STOP_SECONDS)
        while left := self.processes():
            _send(left, signal.SIGKILL)
            psutil.wait_procs(left, 1)
        if self._child is not None:
            self._child.wait()
        self._pid.unlink(missing_ok=True)


def _send(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


@contextmanager
def running(server: Server) -> Iterator[Server]:
    try:
        server.start()
        yield server
    finally:
        server.stop()


def postgresql(folder: Path, password: str, port: int | None = None) -> tuple[Server, int]:
    """PostgreSQL, not started, and its port. Its owner is called `owner`; the data are made in `folder`, if need be."""
    user = "nobody" if os.getuid() == 0 else None
    port, data = port or free_port(), folder / "data"
    if not data.exists():
        folder.mkdir(exist_ok=True)
        secret = folder / "password"
        secret.write_text(password)
        secret.chmod(0o600)
        if user is not None:
            for path in (folder, secret):
                os.chown(path, pwd.getpwnam(user).pw_uid, -1)
        make = [POSTGRESQL / "initdb", "-D", data, "-U", "owner", "--pwfile", secret]
        make += ["--auth=scram-sha-256", "--no-sync", "--encoding=UTF8", "--locale=C"]
        made = subprocess.run(list(map(str, make)), capture_output=True, text=True, cwd="/", **_identity(user))
        if made.returncode != 0:
            raise RuntimeError(f"PostgreSQL cannot make its data in {data} as {user or 'this user'}: {made.stderr}")
    command = [str(POSTGRESQL / "postgres"), "-D", str(data), "-p", str(port), "-c", "unix_socket_directories="]

    def ready() -> bool:
        check = [str(POSTGRESQL / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
        return subprocess.run(check).returncode == 0

    # At SIGTERM it would wait until nobody is connected any more.
    return Server(command, folder.with_suffix(".log"), ready, end=signal.SIGINT, user=user), port


def create_database(name: str, port: int, password: str) -> None:
    create = [str(POSTGRESQL / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "owner", name]
    subprocess.run(create, check=True, env={**os.environ, "PGPASSWORD": password})


def mlflow_server(
    folder: Path, *options: str, port: int | None = None, environment: Mapping[str, str] | None = None
) -> tuple[Server, str]:
    """An MLflow server, not started, and its address."""
    port = port or free_port()
    address = f"http://127.0.0.1:{port}"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    quiet = ["env", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false", "DO_NOT_TRACK=true"]
    ready = answering(f"{address}/health")
    return Server([*quiet, *command, *options], folder / "mlflow.log", ready, environment=environment), address


def s3_server(folder: Path, port: int | None = None) -> tuple[Server, str]:
    """Moto's S3, not started, and its address. What it holds is lost when it ends; stop it with SIGSTOP."""
    port = port or free_port()
    address = f"http://127.0.0.1:{port}"
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    return Server(command, folder / "s3.log", answering(f"{address}/moto-api/")), address


def answering(address: str) -> Callable[[], bool]:
    """Whether something answers there, to be asked later."""

    def answers() -> bool:
        try:
            with urllib.request.urlopen(address, timeout=2) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    return answers


def _identity(user: str | None) -> dict[str, object]:
    return {} if user is None else {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
