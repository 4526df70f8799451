"""Metrics on their way to MLflow. While it does not take them, they are kept on disk, and tried again later."""

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

Entry = tuple[str, float, int, int]
"""Name, value, milliseconds since 1970, step."""

FLUSH_SECONDS = 2.0
FLUSH_ENTRIES = 500
LONGEST_PAUSE = 30.0


class Outbox:
    """What has been measured and not been sent, in order. Sending twice does no harm: MLflow keeps one of equals.

    `send` returns whether everything was taken. An interrupted attempt's file is read by whoever goes on with it.
    """

    def __init__(self, send: Callable[[Sequence[Entry]], bool]) -> None:
        self._send = send
        self._file: Path | None = None
        self._unsent: list[Entry] = []
        self._in_file = 0
        self._new = 0
        self._guard = threading.Lock()
        self._sending = threading.Lock()
        self._looked = self._tried = time.monotonic()
        self._pause = 0.0

    def keep_in(self, file: Path) -> None:
        """From now on keep in `file` what could not be sent. What it holds already is sent first."""
        with self._guard:
            kept = _read(file)
            self._file = file
            self._unsent[:0] = kept
            self._in_file = len(kept)

    def add(self, entries: Sequence[Entry]) -> None:
        """Take these, and send what there is if it is time."""
        with self._guard:
            self._unsent += entries
            self._new += len(entries)
            due = self._new >= FLUSH_ENTRIES or time.monotonic() - self._looked >= FLUSH_SECONDS
        if due:
            self.flush()

    def flush(self, *, now: bool = False) -> None:
        """Afterwards everything is with MLflow or on disk. After a failure MLflow is asked again only after a pause."""
        with self._sending:
            entries = self._all()
            self._looked = time.monotonic()
            if not entries:
                return
            if now or self._looked - self._tried >= self._pause:
                taken = self._send(entries)
                self._tried = time.monotonic()
                if taken:
                    self._taken(len(entries))
                    return
                self._pause = min(max(2 * self._pause, FLUSH_SECONDS), LONGEST_PAUSE)
            self._write(entries)

    def drain(self, send: Callable[[Sequence[Entry]], object]) -> None:
        """Have everything with MLflow, by a `send` that waits for it."""
        self.flush(now=True)
        with self._sending:
            if entries := self._all():
                send(entries)
                self._taken(len(entries))

    def _all(self) -> list[Entry]:
        with self._guard:
            self._new = 0
            return list(self._unsent)

    def _taken(self, count: int) -> None:
        self._pause = 0.0
        with self._guard:
            del self._unsent[:count]
            self._in_file = 0
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _write(self, entries: Sequence[Entry]) -> None:
        if self._file is None or self._in_file >= len(entries):
            return
        # A line begins with its break, so that one which was cut short does not spoil the next.
        lines = "".join("\n" + json.dumps(entry) for entry in entries[self._in_file :])
        with self._file.open("a", encoding="utf-8") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self._in_file = len(entries)


def _read(file: Path) -> list[Entry]:
    entries: list[Entry] = []
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            name, value, milliseconds, step = json.loads(line)
            entries.append((str(name), float(value), int(milliseconds), int(step)))
        except (ValueError, TypeError):
            continue
    return entries
