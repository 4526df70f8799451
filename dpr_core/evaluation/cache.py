"""The cache of judgments that were paid for: one SQLite file, shared by all runs and processes."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from dpr_core.errors import DensePathError
from dpr_core.evaluation.database import Database

T = TypeVar("T")

Kept = tuple[str, str, dict[str, str | int]]
"""The value, the judge's own words, and what an endpoint told about its work."""


class VerdictCache:
    """Verdicts and ratings by key. Only readable ones are ever kept."""

    def __init__(self, path: Path) -> None:
        self._file = Database(
            path,
            "the verdicts that were paid for",
            "CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, verdict TEXT NOT NULL, raw TEXT NOT NULL, "
            "details TEXT NOT NULL, made TEXT NOT NULL)",
        )

    def get(self, key: str) -> Kept | None:
        for value, raw, details in self._file.rows("SELECT verdict, raw, details FROM verdicts WHERE key = ?", key):
            try:
                told = json.loads(details)
                if not (isinstance(told, dict) and isinstance(value, str) and isinstance(raw, str)):
                    raise ValueError("not what was written")
            except (TypeError, ValueError):
                raise self._damaged(key) from None
            return value, raw, told
        return None

    def restored(self, key: str, known: Kept, restore: Callable[[str, str, Mapping[str, str | int]], T]) -> T:
        """What `restore` makes of a row, which raises ValueError for a value that no judge gave."""
        try:
            return restore(*known)
        except ValueError:
            raise self._damaged(key) from None

    def put(self, key: str, value: str | None, raw: str, details: Mapping[str, str | int]) -> None:
        """The first value for a key stays: what a run has reported must not change under it."""
        if value is None:
            return
        made = datetime.now(UTC).isoformat(timespec="seconds")
        self._file.write(
            "INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?, ?)", key, value, raw, json.dumps(dict(details)), made
        )

    def _damaged(self, key: str) -> DensePathError:
        return self._file.damaged(f"the row {key} is not as a judge's verdict is written")

    def close(self) -> None:
        self._file.close()
