"""The spending ledger of LLM judging: one SQLite file in the home, of all runs, stages and processes together.

A request is charged at the most that it can cost before it is sent. What the endpoint says of it replaces that. Where
no word comes, since the request or the process was lost, the charge stays: the endpoint may have served it. No clock
takes part in this.
"""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dpr_core.evaluation.database import Database

SPENDING = "spending.sqlite"
"""Its name, beside the verdicts in `DPR_HOME`."""

BILLION = 10**9
"""Sums are whole billionths of a dollar: adding them up in any order gives the same."""

WHOLE = "CHECK (billionths IS NULL OR (typeof(billionths) = 'integer' AND billionths >= 0))"
"""Older systems have an SQLite that knows no STRICT tables."""

CHARGES = f"""CREATE TABLE IF NOT EXISTS charges (
    id INTEGER PRIMARY KEY, account TEXT NOT NULL, model TEXT NOT NULL,
    billionths INTEGER {WHOLE}, is_answered INTEGER NOT NULL, requests INTEGER NOT NULL,
    read INTEGER NOT NULL, written INTEGER NOT NULL, batch TEXT UNIQUE, made TEXT NOT NULL)"""
"""Without `billionths` where no price is known."""

TOTALS = f"""CREATE TABLE IF NOT EXISTS totals (
    account TEXT PRIMARY KEY, billionths INTEGER NOT NULL {WHOLE})"""

CHARGED = """CREATE TRIGGER IF NOT EXISTS charged AFTER INSERT ON charges BEGIN
    INSERT INTO totals VALUES (new.account, IFNULL(new.billionths, 0))
    ON CONFLICT (account) DO UPDATE SET billionths = billionths + excluded.billionths; END"""

ANSWERED = """CREATE TRIGGER IF NOT EXISTS answered AFTER UPDATE ON charges BEGIN
    UPDATE totals SET billionths = billionths + IFNULL(new.billionths, 0) - IFNULL(old.billionths, 0)
    WHERE account = new.account; END"""

WITHDRAWN = """CREATE TRIGGER IF NOT EXISTS withdrawn AFTER DELETE ON charges BEGIN
    UPDATE totals SET billionths = billionths - IFNULL(old.billionths, 0) WHERE account = old.account; END"""


@dataclass(frozen=True)
class Spent:
    """What an account has spent on one model."""

    account: str
    model: str
    requests: int
    """That were answered."""
    read: int
    written: int
    dollars: float
    """Where a price was known."""
    without_price: int
    """Requests of which it was not."""
    without_answer: int
    """Requests that are under way, or were lost."""
    set_aside: float
    """Dollars: the most that those can have cost."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Spending:
    """A ledger in a file, or without a path in memory. `durable` waits for the disk before anything is sent."""

    def __init__(self, path: Path | None, durable: bool = False) -> None:
        self._file = Database(
            path,
            "what judging has cost",
            *(CHARGES, TOTALS, CHARGED, ANSWERED, WITHDRAWN),
            synchronous="FULL" if durable else "NORMAL",
        )
        self._answers: list[tuple[Any, ...]] = []
        if wrong := self._file.rows(
            "SELECT account FROM totals LEFT JOIN (SELECT account, SUM(billionths) AS found FROM charges GROUP BY 1) "
            "USING (account) WHERE billionths != IFNULL(found, 0)"
        ):
            raise self._file.damaged(f"the total of {wrong[0][0]!r} is not the sum of its charges")

    @classmethod
    def beside(cls, cache: Path | None, durable: bool = False) -> "Spending":
        """The ledger of the home whose verdicts are kept in this file."""
        return cls(None if cache is None else cache.with_name(SPENDING), durable)

    def charge(
        self, account: str, model: str, most: int | None, cap: int | None, requests: int = 1, batch: str | None = None
    ) -> int | None:
        """Charge the most that requests can cost: the number of the charge, or None where it would pass the cap.

        A batch has one charge, whoever asks for it and however often.
        """
        with self._file.at_once():
            self._write_answers()
            if batch is not None and (known := self._file.rows("SELECT id FROM charges WHERE batch = ?", batch)):
                return int(known[0][0])
            if cap is not None and most and self.total(account) + most > cap:
                return None
            return self._file.write(
                "INSERT INTO charges (account, model, billionths, is_answered, requests, read, written, batch, made) "
                "VALUES (?, ?, ?, 0, ?, 0, 0, ?, ?)",
                *(account, model, most, requests, batch, datetime.now(UTC).isoformat(timespec="seconds")),
            ).lastrowid

    def answer(self, charge: int, cost: int | None, read: int, written: int, requests: int = 1) -> None:
        """What it did cost, by the endpoint's word; written down with the next charge, or by `flush`."""
        self._answers.append((cost, requests, read, written, charge))

    def withdraw(self, charge: int) -> None:
        """Nothing was sent, or it was refused."""
        self._file.write("DELETE FROM charges WHERE id = ? AND NOT is_answered", charge)

    def flush(self) -> None:
        if self._answers:
            with self._file.at_once():
                self._write_answers()

    def total(self, account: str) -> int:
        """All that the account has spent and set aside."""
        found = self._file.rows("SELECT billionths FROM totals WHERE account = ?", account)
        return int(found[0][0]) if found else 0

    def by_model(self) -> list[Spent]:
        columns = (
            "SUM(requests) FILTER (WHERE is_answered)",
            "SUM(read)",
            "SUM(written)",
            "SUM(billionths) FILTER (WHERE is_answered)",
            "SUM(requests) FILTER (WHERE billionths IS NULL)",
            "SUM(requests) FILTER (WHERE NOT is_answered)",
            "SUM(billionths) FILTER (WHERE NOT is_answered)",
        )
        sums = ", ".join(f"IFNULL({column}, 0)" for column in columns)
        found = self._file.rows(f"SELECT account, model, {sums} FROM charges GROUP BY 1, 2 ORDER BY 1, 2")
        return [
            Spent(account, model, requests, read, written, paid / BILLION, unpriced, lost, aside / BILLION)
            for account, model, requests, read, written, paid, unpriced, lost, aside in found
        ]

    def close(self) -> None:
        self.flush()
        self._file.close()

    def _write_answers(self) -> None:
        answers, self._answers = self._answers, []
        self._file.write_many(
            "UPDATE charges SET billionths = ?, is_answered = 1, requests = ?, read = ?, written = ? "
            "WHERE id = ? AND NOT is_answered",
            answers,
        )
