"""Verdicts that were paid for once: one SQLite file, shared by all runs and processes."""

import asyncio
import hashlib
import json
import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from dpr_core.evaluation.judge import Comparison, Judge, Judgment, Verdict

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

WAIT_SECONDS = 60.0


class VerdictCache:
    """Judgments and ratings by key. Only readable ones are ever kept."""

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

    def get(self, key: str) -> Judgment | None:
        known = self.read(key)
        return None if known is None else Judgment(Verdict(known[0]), *known[1:])

    def put(self, key: str, judgment: Judgment) -> None:
        if judgment.verdict is not Verdict.UNREADABLE:
            self.keep(key, judgment.verdict.value, judgment.raw, judgment.details)

    def read(self, key: str) -> tuple[str, str, dict[str, str | int]] | None:
        """Verdict, the judge's own words, and what an endpoint told about its work."""
        row = self._rows.execute("SELECT verdict, raw, details FROM verdicts WHERE key = ?", (key,)).fetchone()
        return None if row is None else (row[0], row[1], json.loads(row[2]))

    def keep(self, key: str, verdict: str, raw: str, details: Mapping[str, str | int]) -> None:
        """The first verdict for a key stays: what a run has reported must not change under it."""
        made = datetime.now(UTC).isoformat(timespec="seconds")
        values = (key, verdict, raw, json.dumps(dict(details)), made)
        self._rows.execute("INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?, ?)", values)

    def close(self) -> None:
        self._rows.close()


def comparison_key(identity: str, comparison: Comparison) -> str:
    """Who judges and how, the question, both answers, and their order."""
    return key_of(identity, comparison)


def key_of(identity: str, asked: "DataclassInstance") -> str:
    """A hash of everything that a verdict depends on: who gives it and how, and all that is asked."""
    text = json.dumps([identity, asdict(asked)], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class CachedJudge:
    """Asks the judge behind it only what nobody has asked it before."""

    def __init__(self, judge: Judge, cache: VerdictCache, identity: str) -> None:
        self._judge = judge
        self._cache = cache
        self._identity = identity
        self._unknown: set[str] = set()
        self._asking: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._reused = 0

    async def prepare(self, comparisons: Sequence[Comparison]) -> None:
        """Only what is not known has to be prepared."""
        keyed = {comparison_key(self._identity, each): each for each in comparisons}
        unknown = {key: each for key, each in keyed.items() if self._cache.get(key) is None}
        self._unknown |= unknown.keys()
        if unknown:
            await self._judge.prepare(list(unknown.values()))

    async def compare(self, comparison: Comparison) -> Judgment:
        key = comparison_key(self._identity, comparison)
        # The same asked twice at once, such as both orders of an answer against itself, is paid for once.
        async with self._asking[key]:
            known = self._cache.get(key)
            if known is not None:
                # What was asked of the judge just now, and written down when it came, is no reuse.
                self._reused += key not in self._unknown
                return known
            judgment = await self._judge.compare(comparison)
            self._cache.put(key, judgment)
            return judgment

    def status(self) -> str:
        reused = f"{self._reused} from the cache" if self._reused else ""
        return ", ".join(part for part in (self._judge.status(), reused) if part)

    async def close(self) -> None:
        # A lock belongs to the event loop in which it was waited for.
        self._asking.clear()
        await self._judge.close()
