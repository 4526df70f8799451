"""Reading the addresses of stores and artifacts."""

import socket
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import url2pathname


def local_path(uri: str) -> Path | None:
    """The folder behind an artifact URI, if it is one of this machine."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return None if parts.scheme else Path(uri)


def without_password(uri: str) -> str:
    """`uri` as it may be shown."""
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:***@{host}"))


def scrub(text: str, uri: str) -> str:
    """`text` without the password of `uri`."""
    shown = text.replace(uri, without_password(uri))
    password = urlsplit(uri).password
    for secret in {password, unquote(password)} if password else ():
        shown = shown.replace(secret, "***")
    return shown


def knock(uri: str, seconds: float) -> None:
    """Fail soon where MLflow would try again for minutes: a database that is not there, is not one, or is locked."""
    parts = urlsplit(uri)
    kind = parts.scheme.split("+")[0]
    if kind == "sqlite":
        path = Path(uri.partition(":///")[2])
        if path.exists():
            with closing(sqlite3.connect(path, timeout=seconds, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("ROLLBACK")
    elif parts.hostname and kind not in ("http", "https"):
        port = parts.port or {"postgresql": 5432, "mysql": 3306, "mssql": 1433}.get(kind, 0)
        socket.create_connection((parts.hostname, port), timeout=seconds).close()
