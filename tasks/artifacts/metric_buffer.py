"""A buffer of metrics on their way to MLflow, spilled to disk while MLflow does not answer."""

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


class MetricBuffer:
    """Metrics that have not been sent, in order. Sending is idempotent: MLflow keeps one of equals.

    `send` returns whether everything was accepted. The file of an interrupted run is read by the one that resumes it.
    """

    def __init__(self, send: Callable[[Sequence[Entry]], bool]) -> None:
        self._send = send
        self._file: Path | None = None
        self._unsent: list[Entry] = []
        self._in_file = 0
        self._new = 0
        self._guard = threading.Lock()
        self._sending = threading.Lock()
        self._last_flush = self._last_send = time.monotonic()
        self._pause = 0.0

    def keep_in(self, file: Path) -> None:
        """From now on keep in `file` what could not be sent. What it holds already is sent first."""
        with self._guard:
            kept = _read(file)
            self._file = file
            self._unsent[:0] = kept
            self._in_file = len(kept)

    def add(self, entries: Sequence[Entry]) -> None:
        """Add entries, and flush if it is time."""
        with self._guard:
            self._unsent += entries
            self._new += len(entries)
            due = self._new >= FLUSH_ENTRIES or time.monotonic() - self._last_flush >= FLUSH_SECONDS
        if due:
            self.flush()

    def flush(self, *, now: bool = False) -> None:
        """Afterwards everything is with MLflow or on disk. After a failure MLflow is tried again only after a pause."""
        with self._sending:
            entries = self._all()
            self._last_flush = time.monotonic()
            if not entries:
                return
            if now or self._last_flush - self._last_send >= self._pause:
                accepted = self._send(entries)
                self._last_send = time.monotonic()
                if accepted:
                    self._remove(len(entries))
                    return
                self._pause = min(max(2 * self._pause, FLUSH_SECONDS), LONGEST_PAUSE)
            self._write(entries)

    def drain(self, send: Callable[[Sequence[Entry]], object]) -> None:
        """Send everything to MLflow, by a `send` that waits for it."""
        self.flush(now=True)
        with self._sending:
            if entries := self._all():
                send(entries)
                self._remove(len(entries))

    def _all(self) -> list[Entry]:
        with self._guard:
            self._new = 0
            return list(self._unsent)

    def _remove(self, count: int) -> None:
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
