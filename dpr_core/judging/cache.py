"""Verdicts that were paid for once: one SQLite file, shared by all runs and processes."""

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from dpr_core.judging.judge import Comparison, Judge, Judgment, Verdict

WAIT_SECONDS = 60.0


class VerdictCache:
    """Judgments by key. Only readable ones are ever kept."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._rows = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None)
        self._rows.execute("PRAGMA journal_mode=WAL")
        self._rows.execute(
            "CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, verdict TEXT NOT NULL, raw TEXT NOT NULL, "
            "details TEXT NOT NULL, made TEXT NOT NULL)"
        )

    def get(self, key: str) -> Judgment | None:
        row = self._rows.execute("SELECT verdict, raw, details FROM verdicts WHERE key = ?", (key,)).fetchone()
        return None if row is None else Judgment(Verdict(row[0]), row[1], json.loads(row[2]))

    def put(self, key: str, judgment: Judgment) -> None:
        """The first verdict for a key stays: what a run has reported must not change under it."""
        if judgment.verdict is Verdict.UNREADABLE:
            return
        made = datetime.now(UTC).isoformat(timespec="seconds")
        values = (key, judgment.verdict.value, judgment.raw, json.dumps(dict(judgment.details)), made)
        self._rows.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?, ?)", values)

    def close(self) -> None:
        self._rows.close()


def comparison_key(identity: str, comparison: Comparison) -> str:
    """A hash of everything that the verdict depends on: who judges and how, the question, both answers, their order."""
    asked = json.dumps([identity, asdict(comparison)], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(asked.encode()).hexdigest()


class CachedJudge:
    """Asks the judge behind it only what nobody has asked it before."""

    def __init__(self, judge: Judge, cache: VerdictCache, identity: str) -> None:
        self._judge = judge
        self._cache = cache
        self._identity = identity
        self._reused = 0

    async def prepare(self, comparisons: Sequence[Comparison]) -> None:
        """Only what is not known has to be prepared."""
        unknown = [each for each in comparisons if self._cache.get(comparison_key(self._identity, each)) is None]
        if unknown:
            await self._judge.prepare(unknown)

    async def compare(self, comparison: Comparison) -> Judgment:
        key = comparison_key(self._identity, comparison)
        known = self._cache.get(key)
        if known is not None:
            self._reused += 1
            return known
        judgment = await self._judge.compare(comparison)
        self._cache.put(key, judgment)
        return judgment

    def status(self) -> str:
        reused = f"{self._reused} from the cache" if self._reused else ""
        return ", ".join(part for part in (self._judge.status(), reused) if part)

    async def close(self) -> None:
        await self._judge.close()
