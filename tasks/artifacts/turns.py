"""Whose turn it is at a key: the run that a stage goes on in or begins, by this home's lock or a lease among hosts."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpr_core.config.base import Config
from dpr_core.errors import DensePathError
from tasks.artifacts.leases import LIVE_STATUS, Holder, Leases, Ledger, Watch
from tasks.artifacts.run_records import Record, is_recent, record_of
from tasks.artifacts.stage_run import StageRun

if TYPE_CHECKING:
    from tasks.artifacts.mlflow_client import MlflowClient

logger = logging.getLogger("dense_path")

PROCESS_GONE = "its process ended without a word"
SUPERSEDED = "another run was made in its place"

Search = Callable[..., Iterable[Any]]


@dataclass(frozen=True)
class Turn:
    """What a stage asks for, once its process holds the lock of the key in this home."""

    key: str
    config: Config
    left: Callable[[], Sequence[str]]
    """Finds the runs of which there is work to go on with."""
    known: Collection[str]
    """Finished artifacts that will not do."""
    not_before: datetime | None
    """What was begun before this moment is not gone on with."""
    parent: str | None
    prepare: Callable[[], object]
    """Called before anything is begun or taken."""
    begin: Callable[[], StageRun]
    on_wait: Callable[[Holder], object]


class HomeTurns:
    """In a store that is one home's own, whose lock says all."""

    def __init__(
        self, client: "MlflowClient", owner: str, search: Search, root_of: Callable[[Any], Path | None]
    ) -> None:
        self._client = client
        self._owner = owner
        self._search = search
        self._root_of = root_of

    def hold(self, turn: Turn) -> StageRun | None:
        """The run that is left, if it can be gone on with; else a new one."""
        turn.prepare()
        run = self._resumed(turn)
        for stale in self._end_stale(turn.key, but=run):
            logger.warning("run %s had been killed; it had left nothing to go on from", stale[:8])
        return run or turn.begin()

    def wait(self, turn: Turn) -> bool:
        """Wait until no other host is at it; whether it is still to be done then."""
        return True

    def _resumed(self, turn: Turn) -> StageRun | None:
        if not (left := turn.left()):
            return None
        listed = ", ".join(f"'{run_id}'" for run_id in left)
        for run in self._search(f"attributes.run_id IN ({listed})", f"tags.`dpr.key` = '{turn.key}'"):
            record = record_of(run)
            if record.owner == self._owner and not record.finished and is_recent(record, turn.not_before):
                take_up(self._client, run, turn.parent, self._owner)
                return StageRun(record.id, self._client, self._root_of(run), run.info.start_time)
        return None

    def _end_stale(self, key: str, but: StageRun | None) -> list[str]:
        """End the runs of this key whose process is gone."""
        ended = []
        for run in self._search(f"tags.`dpr.key` = '{key}'", "attributes.status = 'RUNNING'"):
            if run.data.tags.get("dpr.owner") == self._owner and (but is None or run.info.run_id != but.id):
                StageRun(run.info.run_id, self._client, None).end("KILLED", PROCESS_GONE)
                ended.append(str(run.info.run_id))
        return ended

    def is_left_to_us(self, record: Record) -> bool:
        """Whether no other host is at a run, or was when it ended."""
        return True

    def close(self, record: Record) -> bool:
        """Have nobody go on with an unfinished run of which this home holds the lock; whether that is so now."""
        return True

    def elsewhere(self, records: Sequence[Record]) -> Mapping[str, tuple[str, bool]]:
        """By ID, where those of these runs are that other homes hold, and whether they have lapsed. Watches them until
        that is known."""
        return {}


class SharedTurns(HomeTurns):
    """In a store that hosts share: the lock of the home, and a lease of the one run that a key has."""

    def __init__(
        self,
        client: "MlflowClient",
        owner: str,
        search: Search,
        root_of: Callable[[Any], Path | None],
        leases: Leases,
    ) -> None:
        super().__init__(client, owner, search, root_of)
        self._leases = leases

    def hold(self, turn: Turn) -> StageRun | None:
        """The run that anyone left, or a new one, with its lease; None: an artifact that was not `known` is there.
        Waits while another host is at it."""
        begun: set[str] = set()

        def is_usable(run: Any) -> bool:
            return run.info.run_id in begun or is_recent(record_of(run), turn.not_before)

        held = self._leases.hold_one(
            partial(self._of_key, turn),
            prepare=turn.prepare,
            create=lambda: begun.add(turn.begin().id),
            discard=self._discard,
            is_usable=is_usable,
            is_settled=partial(self._is_settled, turn),
            on_wait=turn.on_wait,
        )
        if held is None:
            return None
        run, lease = held
        client = self._client.fenced(lease.confirm)
        if Ledger.of(run).is_fresh:
            client.log_config(run.info.run_id, turn.config)
        else:
            take_up(client, run, turn.parent, self._owner)
        return StageRun(run.info.run_id, client, self._root_of(run), run.info.start_time, lease)

    def wait(self, turn: Turn) -> bool:
        settled = partial(self._is_settled, turn)
        return self._leases.unheld(partial(self._of_key, turn), settled, turn.on_wait, Watch()) is not None

    def _of_key(self, turn: Turn) -> list[Any]:
        return list(self._search(f"tags.`dpr.key` = '{turn.key}'"))

    @staticmethod
    def _is_settled(turn: Turn, runs: Sequence[Any]) -> bool:
        return any(record.finished and record.id not in turn.known for record in map(record_of, runs))

    def _discard(self, ledger: Ledger) -> None:
        with suppress(DensePathError):
            if ledger.is_fresh:
                self._client.delete_run(ledger.run_id)
            elif ledger.status in LIVE_STATUS:
                self._client.set_tag(ledger.run_id, "dpr.reason", SUPERSEDED)
                self._client.set_terminated(ledger.run_id, "KILLED")
                logger.warning("run %s was left unfinished, and another one is made in its place", ledger.run_id[:8])

    def is_left_to_us(self, record: Record) -> bool:
        return not self._leases.is_elsewhere(Ledger.of(self._client.get_run(record.id)))

    def close(self, record: Record) -> bool:
        ledger = Ledger.of(self._client.get_run(record.id))
        if self._leases.is_elsewhere(ledger) or not self._leases.close(ledger):
            return False
        if ledger.status in LIVE_STATUS:
            self._client.set_tag(ledger.run_id, "dpr.reason", PROCESS_GONE)
            self._client.set_terminated(ledger.run_id, "KILLED")
        return True

    def elsewhere(self, records: Sequence[Record]) -> Mapping[str, tuple[str, bool]]:
        if not records:
            return {}
        listed = ", ".join(f"'{record.id}'" for record in records)

        def read() -> Iterable[Any]:
            return self._search(f"attributes.run_id IN ({listed})")

        self._leases.watch(read)
        ledgers = filter(self._leases.is_elsewhere, map(Ledger.of, read()))
        return {each.run_id: (each.holder.where, each.has_lapsed) for each in ledgers}


def take_up(client: "MlflowClient", run: Any, parent: str | None, owner: str) -> None:
    """Have an interrupted run as running again."""
    record = record_of(run)
    client.update_run(record.id, status="RUNNING")
    client.set_tag(record.id, "dpr.taken_up", str(int(run.data.tags.get("dpr.taken_up", "0")) + 1))
    if record.reason:
        client.set_tag(record.id, "dpr.reason", "")
    if record.owner != owner:
        client.set_tag(record.id, "dpr.owner", owner)
    if parent is not None and record.parent != parent:
        client.set_tag(record.id, "mlflow.parentRunId", parent)
