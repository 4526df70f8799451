"""SQLite files that processes share: opened for many writers, with errors in words."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpr_core.errors import DensePathError

WAIT_SECONDS = 60.0


class Database:
    """A file of tables, or without a path the same in memory."""

    def __init__(self, path: Path | None, holds: str, *made: str, synchronous: str = "NORMAL") -> None:
        self.path = path
        self._holds = holds
        with self._told():
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._rows = sqlite3.connect(path or ":memory:", timeout=WAIT_SECONDS, isolation_level=None)
            self._rows.execute("PRAGMA journal_mode=WAL")
            # A killed process loses nothing under NORMAL; FULL waits for the disk at each write, against a power cut.
            self._rows.execute(f"PRAGMA synchronous={synchronous}")
            # In pages, ten times the default: a checkpoint waits for the disk, and all requests wait for it.
            self._rows.execute("PRAGMA wal_autocheckpoint=10000")
            for each in made:
                self._rows.execute(each)

    def rows(self, query: str, *values: Any) -> list[Any]:
        with self._told():
            return self._rows.execute(query, values).fetchall()

    def write(self, statement: str, *values: Any) -> sqlite3.Cursor:
        with self._told():
            return self._rows.execute(statement, values)

    def write_many(self, statement: str, values: Sequence[Sequence[Any]]) -> None:
        with self._told():
            self._rows.executemany(statement, values)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """All that is written in the block, or none of it; nobody else writes meanwhile."""
        self.write("BEGIN IMMEDIATE")
        try:
            yield
            self.write("COMMIT")
        except BaseException:
            self._rows.rollback()
            raise

    def damaged(self, why: str) -> DensePathError:
        return DensePathError(
            f"{self.path} holds {self._holds}, and is damaged or was edited by hand: {why}; restore it, or move it "
            "away and go on without what it holds"
        )

    def close(self) -> None:
        self._rows.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            is_of_the_machine = isinstance(error, OSError | sqlite3.OperationalError) and "no such" not in str(error)
            if not is_of_the_machine:
                raise self.damaged(str(error)) from None
            raise DensePathError(
                f"{self.path}, which holds {self._holds}, cannot be used now ({error}); check the disk, its free space "
                "and who else has the file open, and run the same command again"
            ) from None
