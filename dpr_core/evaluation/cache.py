"""The cache of judgments that were paid for: one SQLite file, shared by all runs and processes."""

import json
import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

WAIT_SECONDS = 60.0


class VerdictCache:
    """Verdicts and ratings by key. Only readable ones are ever kept."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._rows = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None)
        self._rows.execute("PRAGMA journal_mode=WAL")
        # A killed process loses nothing. Waiting for the disk at each verdict, against a power cut, halves the speed.
        self._rows.execute("PRAGMA synchronous=NORMAL")
        self._rows.execute(
            "CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, verdict TEXT NOT NULL, raw TEXT NOT NULL, "
            "details TEXT NOT NULL, made TEXT NOT NULL)"
        )

    def get(self, key: str) -> tuple[str, str, dict[str, str | int]] | None:
        """The value, the judge's own words, and what an endpoint told about its work."""
        row = self._rows.execute("SELECT verdict, raw, details FROM verdicts WHERE key = ?", (key,)).fetchone()
        return None if row is None else (row[0], row[1], json.loads(row[2]))

    def put(self, key: str, value: str | None, raw: str, details: Mapping[str, str | int]) -> None:
        """The first value for a key stays: what a run has reported must not change under it."""
        if value is None:
            return
        made = datetime.now(UTC).isoformat(timespec="seconds")
        values = (key, value, raw, json.dumps(dict(details)), made)
        self._rows.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?, ?)", values)

    def close(self) -> None:
        self._rows.close()
