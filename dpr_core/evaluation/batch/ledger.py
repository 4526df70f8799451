"""A ledger on disk of the requests under way in each batch, so that none is sent, and paid for, twice."""

import asyncio
import fcntl
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from dpr_core.evaluation.database import Database

SECONDS_BETWEEN_TRIES = 0.2


@dataclass(frozen=True)
class Sent:
    """An uploaded file of requests, and its batch."""

    file: str
    batch: str | None
    """None where it is not known whether the batch was ever made: a process ended in between."""
    requests: frozenset[str]
    """Those of its requests that somebody asks for now."""


class Ledger:
    """A table in the file of the verdicts, shared by all processes; without a file, in memory."""

    def __init__(self, path: Path | None) -> None:
        self._lock = None if path is None else path.with_name(f"{path.name}.sending")
        self._file = Database(
            path,
            "the batches under way",
            "CREATE TABLE IF NOT EXISTS under_way (request TEXT PRIMARY KEY, file TEXT, batch TEXT)",
        )

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """Held while batches are made: two processes must not send the same. The kernel frees it when one ends."""
        if self._lock is None:
            yield
            return
        with self._lock.open("a") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(SECONDS_BETWEEN_TRIES)
            yield

    def sent(self, requests: Iterable[str]) -> list[Sent]:
        """The files that hold any of these requests."""
        found: defaultdict[tuple[str, str | None], set[str]] = defaultdict(set)
        for request in requests:
            for file, batch in self._file.rows("SELECT file, batch FROM under_way WHERE request = ?", request):
                found[file, batch].add(request)
        return [Sent(file, batch, frozenset(held)) for (file, batch), held in found.items()]

    def uploaded(self, file: str, requests: Iterable[str]) -> None:
        """Written before the batch is made: should this process end now, the next looks for the batch of the file."""
        rows = [(request, file) for request in requests]
        with self._file.at_once():
            self._file.write_many("INSERT OR REPLACE INTO under_way VALUES (?, ?, NULL)", rows)

    def started(self, file: str, batch: str) -> None:
        self._file.write("UPDATE under_way SET batch = ? WHERE file = ?", batch, file)

    def forget(self, sent: Sent) -> None:
        """These requests are under way no more. Others of the same file stay: somebody may ask for them later."""
        rows = [(request, sent.file) for request in sent.requests]
        with self._file.at_once():
            self._file.write_many("DELETE FROM under_way WHERE request = ? AND file = ?", rows)
