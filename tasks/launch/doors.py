"""The rendezvous of the processes of one stage: a Unix socket on this machine, or a TCP port that other machines reach,
where both ends prove by a challenge that they know the secret in the home; and the JSON messages between them."""

import json
import os
import secrets
import socket
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from pathlib import Path
from typing import Any, NamedTuple

from dpr_core.errors import UsageError
from tasks.locks import exclusive

HANDSHAKE_SECONDS = 10
"""How long a process that connects has to identify itself."""

FOR_EVER = 0

CONNECT_SECONDS = 60
"""How long it waits to be admitted: others may be before it."""

KEEP_ALIVE = {socket.TCP_KEEPIDLE: 30, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 3}
"""A machine that is gone without a word is noticed within a minute."""


def send(line: Connection, **message: Any) -> None:
    line.send_bytes(json.dumps(message).encode())


def receive(line: Connection) -> dict[str, Any]:
    """Raises EOFError or OSError where the other end is gone."""
    message: dict[str, Any] = json.loads(line.recv_bytes())
    return message


class Door(NamedTuple):
    """What lets processes in."""

    listening: socket.socket
    address: str
    """Where the processes of this machine find it."""

    secret: bytes | None = None

    def fileno(self) -> int:
        return self.listening.fileno()

    def admit(self) -> tuple[Connection, dict[str, Any]] | None:
        """The line to whoever comes next, and what they say first; None if they do not know the secret."""
        accepted, _ = self.listening.accept()
        line = Connection(accepted.detach())
        try:
            if self.secret is not None:
                _keep_alive(line)
                _wait(line, HANDSHAKE_SECONDS)
                deliver_challenge(line, self.secret)
                answer_challenge(line, self.secret)
            first = receive(line)
            _wait(line, FOR_EVER)
        except (AuthenticationError, AssertionError, EOFError, OSError, ValueError):
            line.close()
            return None
        return line, first


@contextmanager
def door_of_this_machine() -> Iterator[Door]:
    with tempfile.TemporaryDirectory(prefix="dpr-") as private, socket.socket(socket.AF_UNIX) as listening:
        address = str(Path(private, "line"))
        try:
            listening.bind(address)
        except OSError as error:
            raise UsageError(f"no socket can be made at {address} ({error}); set TMPDIR to a shorter path") from error
        listening.listen()
        yield Door(listening, address)


@contextmanager
def door_for_machines(port: int, home: Path) -> Iterator[Door]:
    secret = secret_of(home)
    try:
        listening = socket.create_server(("", port))
    except OSError as error:
        raise UsageError(
            f"launch.main_port: cannot listen on port {port} ({error.strerror}); choose another"
        ) from error
    with listening:
        yield Door(listening, f"127.0.0.1:{port}", secret)


def knock(address: str, home: Path) -> Connection:
    """A line to whoever has the door at this address. Raises EOFError or OSError where there is none."""
    if os.path.isabs(address):
        with socket.socket(socket.AF_UNIX) as local:
            local.connect(address)
            return Connection(local.detach())
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS) as far:
        far.settimeout(None)
        line = Connection(far.detach())
    try:
        _keep_alive(line)
        _wait(line, CONNECT_SECONDS)
        secret = _file(home).read_bytes()
        answer_challenge(line, secret)
        deliver_challenge(line, secret)
        _wait(line, FOR_EVER)
    except (AuthenticationError, AssertionError, FileNotFoundError) as error:
        line.close()
        raise UsageError(
            f"{address} does not know the secret in {_file(home)}; set DPR_HOME to the folder of the run that listens "
            "there, on a file system that both machines share"
        ) from error
    except BaseException:
        line.close()
        raise
    return line


def secret_of(home: Path) -> bytes:
    """What processes of other machines have to know. Who can read it may as well change all that lies beside it."""
    file = _file(home)
    with exclusive(home / "locks" / "home.lock"):
        if not file.exists():
            new = home / "work" / "SECRET.new"
            new.unlink(missing_ok=True)
            with os.fdopen(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as writing:
                writing.write(secrets.token_bytes(32))
            new.rename(file)
        return file.read_bytes()


def _file(home: Path) -> Path:
    return home / "SECRET"


def _keep_alive(line: Connection) -> None:
    with socket.socket(fileno=os.dup(line.fileno())) as far:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEP_ALIVE.items():
            far.setsockopt(socket.IPPROTO_TCP, option, value)
        # Two short messages, one after the other, are not to wait for each other.
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _wait(line: Connection, seconds: int) -> None:
    """Reading from the line takes no longer than that; then it is an OSError."""
    with socket.socket(fileno=os.dup(line.fileno())) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", seconds, 0))
