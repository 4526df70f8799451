"""What processes say to each other over a line: JSON, which runs nothing where it is read."""

import json
from multiprocessing.connection import Connection
from typing import Any


def send(line: Connection, **message: Any) -> None:
    line.send_bytes(json.dumps(message).encode())


def receive(line: Connection) -> dict[str, Any]:
    """Raises EOFError or OSError where nobody is there any more."""
    message: dict[str, Any] = json.loads(line.recv_bytes())
    return message
