"""Leases on MLflow runs among hosts: compare-and-set on params, which are written once; heartbeats that an observer
times by its own clock.

The params `dpr.lease.1`, `dpr.lease.2`, ... of a run are a log of who held it. Who is first to write the next entry has
it; of two, the database refuses one. No host ever compares its clock with another's.
"""

import logging
import math
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from dpr_core.errors import DensePathError, UsageError
from dpr_core.text import escape_control
from tasks.artifacts.retrying import LeaseLostError

if TYPE_CHECKING:
    from tasks.artifacts.mlflow_client import MlflowClient

logger = logging.getLogger("dense_path")

VARIABLE = "DPR_LEASE_SECONDS"
DEFAULT_SECONDS = 90.0
LONGEST_SECONDS = 3600.0

BEATS = 5
"""Heartbeats in the time after which a lease lapses."""
LOOKS = 18
"""How often others look in that time."""
TRUSTED = 0.5
"""The part of that time after a heartbeat in which the holder writes without asking."""

ENTRY = re.compile(r"dpr\.lease\.([0-9]{1,9})")
BEAT = "dpr.beat"
FREE = "free"
CLOSED = "closed"
UNTOUCHED = "0"
"""The heartbeat of a run that was made to be held, and is not yet."""
LIVE_STATUS = ("RUNNING", "SCHEDULED")

_LAPSED: dict[str, tuple[int, str | None]] = {}
"""Of runs that were seen to have lapsed, what they said. A holder that comes back writes a new entry first."""


class Holder(NamedTuple):
    """Who holds a run, as it wrote."""

    token: str
    seconds: float
    """Without a sign of life for so long, it has lost it."""
    home: str
    where: str
    """Host and folder, for people."""


@dataclass(frozen=True)
class Ledger:
    """What a run says of its leases."""

    run_id: str
    number: int
    """Of the last entry; 0: there is none."""
    entry: str
    held: str
    """The last entry that says who held it, or does."""
    beat: str | None
    status: str
    owner: str
    """The home that the run was made in, or went on in last."""

    @classmethod
    def of(cls, run: Any) -> Self:
        found = {int(name[1]): text for key, text in run.data.params.items() if (name := ENTRY.fullmatch(key))}
        number = max(found, default=0)
        tags = run.data.tags
        status = str(run.info.status)
        if run.info.lifecycle_stage != "active":
            found[number] = CLOSED
        held = [found[each] for each in sorted(found) if found[each] not in (FREE, CLOSED)]
        entry, owner = found.get(number, ""), str(tags.get("dpr.owner", ""))
        return cls(run.info.run_id, number, entry, held[-1] if held else "", tags.get(BEAT), status, owner)

    @property
    def is_fresh(self) -> bool:
        """Whether it was made to be held, and nobody has got hold of it so far."""
        return self.number == 0 and self.beat == UNTOUCHED

    @property
    def is_over(self) -> bool:
        """Whether nobody will ever hold it again."""
        by_an_earlier_version = self.number == 0 and self.beat is None and self.status not in LIVE_STATUS
        return self.status == "FINISHED" or self.entry == CLOSED or by_an_earlier_version

    @property
    def is_free(self) -> bool:
        return self.is_fresh or self.entry == FREE

    @property
    def has_lapsed(self) -> bool:
        """Whether `Leases.watch` has seen so. Who finds it so may take it."""
        return _LAPSED.get(self.run_id) == (self.number, self.beat)

    @cached_property
    def holder(self) -> Holder:
        """Who holds it, or did; an earlier version did not say so."""
        token, seconds, home, where = [*self.held.split(" ", 3), "", "", "", ""][:4]
        try:
            lapse = float(seconds)
        except ValueError:
            lapse = DEFAULT_SECONDS
        lapse = min(lapse, LONGEST_SECONDS) if lapse > 0 else DEFAULT_SECONDS
        return Holder(token, lapse, home or self.owner, escape_control(where)[:200] or "another machine")


def lease_seconds() -> float:
    """`DPR_LEASE_SECONDS`, if set."""
    setting = os.environ.get(VARIABLE, "").strip()
    try:
        seconds = float(setting) if setting else DEFAULT_SECONDS
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= LONGEST_SECONDS:
        raise UsageError(
            f"{VARIABLE}: {setting!r} is no number of seconds up to {LONGEST_SECONDS:g}; it says after how long "
            f"without a sign of life others take a run over, {DEFAULT_SECONDS:g} s where it is not set"
        )
    return seconds


class Watch:
    """For how long runs have given no sign of life, by this machine's own clock.

    Where nobody answered for a while, or this process slept, it begins anew: others may have been cut off too.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple[tuple[int, str | None], float, float]] = {}

    def has_lapsed(self, ledger: Ledger, asked: float) -> bool:
        """Whether the holder has lost it; `asked` is when the question was sent that the ledger answers."""
        lapse, state, now = ledger.holder.seconds, (ledger.number, ledger.beat), time.monotonic()
        before, since, last = self._seen.get(ledger.run_id, ((-1, None), now, now))
        if before != state or asked - last > lapse / 3:
            since = now
        self._seen[ledger.run_id] = state, since, now
        return asked - since > lapse

    def has_changed(self, ledger: Ledger) -> bool:
        """Whether it has given a sign of life since it was first looked at."""
        before = self._seen.get(ledger.run_id)
        return before is not None and before[0] != (ledger.number, ledger.beat)


class Lease:
    """A run that this process holds, with a thread that says so. Inside the block it may be written to."""

    def __init__(self, client: "MlflowClient", ledger: Ledger, entry: str, seconds: float, sent: float) -> None:
        self.run_id = ledger.run_id
        self._client = client
        self.turn = self._number = ledger.number + 1
        self._entry = entry
        self._seconds = seconds
        self._heard = sent
        """When the last sign of life was sent that arrived."""
        self._lost = ""
        self._count = 0
        self._guard = threading.RLock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name=f"lease {self.run_id[:8]}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def check(self) -> None:
        """Raise if it is known to be lost. Asks nobody."""
        if self._lost:
            raise LeaseLostError(self._lost)

    def confirm(self) -> None:
        """Raise unless this process holds it at this moment."""
        with self._guard:
            self.check()
            if not self.is_trusted:
                self._renew()

    def release(self, *, closed: bool) -> None:
        """Leave it to whoever comes next, or have nobody go on with it."""
        with self._guard:
            self.check()
            self._ended.set()
            decide(self._client, self.run_id, self._number + 1, CLOSED if closed else FREE)

    @property
    def is_trusted(self) -> bool:
        """Whether nobody can have taken it over yet."""
        return time.monotonic() - self._heard < TRUSTED * self._seconds

    def _keep_beating(self) -> None:
        while not self._ended.wait(self._seconds / BEATS):
            try:
                self._client.retry.try_once(self._beat)
            except Exception as error:
                logger.debug("the lease of run %s was not kept up: %s", self.run_id[:8], error)
            if self._lost:
                return

    def _beat(self) -> None:
        with self._guard:
            if self._ended.is_set():
                return
            sent = time.monotonic()
            ledger = Ledger.of(self._client.get_run(self.run_id))
            if ledger.entry != self._entry:
                self._lose(ledger)
            elif not self.is_trusted:
                self._renew()
            else:
                self._count += 1
                self._client.set_tag(self.run_id, BEAT, f"{self._number}.{self._count}")
                self._heard = sent

    def _renew(self) -> None:
        """After a silence somebody may be about to take it over: of the two, one writes the next entry."""
        sent = time.monotonic()
        entry = f"{secrets.token_hex(8)} {self._entry.partition(' ')[2]}"
        found = decide(self._client, self.run_id, self._number + 1, entry)
        if found.entry != entry:
            self._lose(found)
            self.check()
        self._number, self._entry, self._heard = self._number + 1, entry, sent

    def _lose(self, ledger: Ledger) -> None:
        why = "it was deleted, or ended, in MLflow" if ledger.entry == CLOSED else f"{ledger.holder.where} took it over"
        self._lost = (
            f"run {self.run_id[:8]} is no longer this process's: {why}, after nothing had been heard from here for "
            f"{self._seconds:g} s. Nothing was published from here; the same command waits for the other, and has what "
            "it makes"
        )
        logger.warning("%s", self._lost)


class Leases:
    """The leases of one store, as this home has part in them."""

    def __init__(self, client: "MlflowClient", home: Path, owner: str) -> None:
        self._client = client
        self._owner = owner
        self._seconds = lease_seconds()
        self._where = f"{socket.gethostname()}:{home}"

    def take(self, ledger: Ledger) -> Lease | None:
        """The lease of a run that nobody holds, or whose holder lost it; None: somebody else was first."""
        sent = time.monotonic()
        entry = f"{secrets.token_hex(8)} {self._seconds:g} {self._owner} {self._where}"
        if decide(self._client, ledger.run_id, ledger.number + 1, entry).entry != entry:
            return None
        return Lease(self._client, ledger, entry, self._seconds, sent)

    def close(self, ledger: Ledger) -> bool:
        """Have nobody go on with a run that nobody holds; whether that is so now."""
        return ledger.is_over or decide(self._client, ledger.run_id, ledger.number + 1, CLOSED).entry == CLOSED

    def hold_one(
        self,
        search: Callable[[], Sequence[Any]],
        *,
        prepare: Callable[[], object],
        create: Callable[[], object],
        discard: Callable[[Ledger], object],
        is_usable: Callable[[Any], bool],
        is_settled: Callable[[Sequence[Any]], bool],
        on_wait: Callable[[Holder], object],
    ) -> tuple[Any, Lease] | None:
        """Hold one of the runs that `search` finds, of which never two are held; None once they are settled.

        Each process closes every other run that it sees before it takes one, and one that is closed can never be taken.
        Had two taken different runs, each would have been made after the other's owner looked, and been there before
        its own did.
        """
        watch = Watch()
        while (ledgers := self.unheld(search, is_settled, on_wait, watch)) is not None:
            prepare()
            # All choose alike: what was worked on, then the oldest.
            ledgers.sort(key=lambda each: (each[1].is_fresh, each[0].info.start_time, each[1].run_id))
            chosen = next((each for each in ledgers if is_usable(each[0])), None)
            others = [ledger for run, ledger in ledgers if chosen is None or run is not chosen[0]]
            if not all(self._closed(each, discard) for each in others):
                continue
            if chosen is None:
                create()
            elif (lease := self.take(chosen[1])) is not None:
                return chosen[0], lease
        return None

    def unheld(
        self,
        search: Callable[[], Sequence[Any]],
        is_settled: Callable[[Sequence[Any]], bool],
        on_wait: Callable[[Holder], object],
        watch: Watch,
    ) -> list[tuple[Any, Ledger]] | None:
        """The runs that can be gone on with, once nobody holds one of them; None once they are settled."""
        while True:
            asked = time.monotonic()
            runs = search()
            if is_settled(runs):
                return None
            ledgers = [(run, ledger) for run in runs if not (ledger := Ledger.of(run)).is_over]
            held = [each for _, each in ledgers if not (each.is_free or self._is_dead(each, watch, asked))]
            if not held:
                return ledgers
            on_wait(held[0].holder)
            time.sleep(max(0.02, held[0].holder.seconds / LOOKS))

    def _is_dead(self, ledger: Ledger, watch: Watch, asked: float) -> bool:
        """Only for the holder of this home's own lock, under which no other process of this home can be at it."""
        return ledger.holder.home == self._owner or watch.has_lapsed(ledger, asked)

    def _closed(self, ledger: Ledger, discard: Callable[[Ledger], object]) -> bool:
        if not self.close(ledger):
            return False
        discard(ledger)
        return True

    def is_elsewhere(self, ledger: Ledger) -> bool:
        """Whether another home holds a run, or had it when its process ended."""
        return not (ledger.is_over or ledger.is_free) and ledger.holder.home != self._owner

    def watch(self, read: Callable[[], Iterable[Any]]) -> None:
        """Find out which of the runs that `read` reads have lapsed of those that other homes hold: look at all until
        each has given a sign of life, or none for long enough."""
        watch, alive, told = Watch(), set[str](), False
        while True:
            asked = time.monotonic()
            waited_for = []
            for ledger in map(Ledger.of, read()):
                if ledger.run_id in alive or ledger.has_lapsed or not self.is_elsewhere(ledger):
                    continue
                if watch.has_changed(ledger):
                    alive.add(ledger.run_id)
                elif watch.has_lapsed(ledger, asked):
                    _LAPSED[ledger.run_id] = (ledger.number, ledger.beat)
                else:
                    waited_for.append(ledger)
            if not waited_for:
                return
            longest = max(ledger.holder.seconds for ledger in waited_for)
            if not told:
                told = True
                logger.info(
                    "%d runs are under way elsewhere, or were (%s): watched for up to %.0f s",
                    len(waited_for),
                    ", ".join(sorted({ledger.holder.where for ledger in waited_for})),
                    longest,
                )
            time.sleep(max(0.02, longest / LOOKS))


def decide(client: "MlflowClient", run_id: str, number: int, entry: str) -> Ledger:
    """Write an entry of a run's log unless there is one of this number; returns the log with what is there."""
    try:
        client.log_param(run_id, f"dpr.lease.{number}", entry)
    except DensePathError:
        found = Ledger.of(client.get_run(run_id))
        if found.number < number and found.entry != CLOSED:
            raise
        return found
    return Ledger(run_id, number, entry, entry, None, "RUNNING", "")
