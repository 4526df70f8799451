"""Garbage collection in a home: orphaned payloads, stale work, cache and locks, removed only while nobody uses them.

Never found: a finished artifact, and its ancestors; what a registered model has its weights from; and, unless it is
asked for, a whole artifact that the database lost.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path

from dpr_core.redaction import redact
from tasks.artifacts.identity import files_below
from tasks.artifacts.registered_models import Version
from tasks.artifacts.run_records import ID, KEY, MANIFEST, PAYLOAD, Record
from tasks.artifacts.store import Store
from tasks.artifacts.unregistered import whole_manifest
from tasks.locks import if_free, is_held
from tasks.running.places import Bucket, Folder, Stored, reached, remove, shared_place
from tasks.running.stage_workdir import StageWorkdir

logger = logging.getLogger("dense_path")

LOCK = re.compile(r"(?:[0-9a-f]{32}){1,2}\.lock")
SCRATCH = timedelta(hours=1)
"""Scratch that no lock belongs to is left alone this long: it is used for seconds."""


@dataclass(frozen=True)
class Removable:
    """A file or a folder that can be removed."""

    path: Path
    kind: str
    why: str
    size: int
    changed: datetime
    lock: str | None = None
    """Whoever holds this lock may be using it."""
    still_valid: Callable[[], bool] = field(default=lambda: True, compare=False)
    """Whether it may still be removed, checked while the lock is held."""
    place: Folder | Bucket | None = None
    """Where machines share states, and this is one run's; `path` is no path then."""

    @property
    def where(self) -> str:
        return str(self.path) if self.place is None else self.place.where


class GarbageCollector:
    """Finds what can be removed now.

    `unfinished`: also work that `dpr resume` could go on from. `unregistered`: also whole artifacts, and records of
    pipelines, that the database does not know.
    """

    def __init__(
        self,
        store: Store,
        *,
        unfinished: bool = False,
        unregistered: bool = False,
        older_than: timedelta = timedelta(0),
    ) -> None:
        self._store = store
        self._unfinished = unfinished
        self._also_unregistered = unregistered
        self.unregistered = store.unregistered()
        """Whole artifacts that stay without `unregistered`."""
        self._whole = {lost.id for lost in self.unregistered}
        self._before = datetime.now(UTC) - older_than
        self._records = {record.id: record for record in store.records()}
        self._finished = {record.key: record for record in self._records.values() if record.finished}
        self._needed = needed(self._records.values())
        self._open = {pipeline.id for pipeline in store.parent_runs.resumable()}
        self._runs = store.folders()
        self._deleted = store.folders(deleted=True)
        self.promoted: dict[str, Version] = {}
        """Registered models whose runs were deleted, and whose files stay."""

    def find(self) -> list[Removable]:
        """Everything that can be removed, by kind."""
        work = (self._payloads, self._uploads, self._states, self._work)
        finders = (*work, self._cached, self._runs_deleted, self._locks)
        return [piece for find in finders for piece in find() if piece.changed <= self._before]

    def remove(self, pieces: Sequence[Removable]) -> list[Removable]:
        """Remove what is unchanged since it was found and nobody uses; returns what was removed."""
        removed = []
        for piece in pieces:
            free: AbstractContextManager[bool] = if_free(self._lock(piece.lock)) if piece.lock else nullcontext(True)
            with free as held:
                if held and piece.still_valid():
                    if piece.place is not None:
                        removed += [piece] if _removed(piece.place) else []
                        continue
                    if piece.path.is_symlink() or piece.path.is_file():
                        piece.path.unlink(missing_ok=True)
                    else:
                        shutil.rmtree(piece.path, ignore_errors=True)
                    if piece.lock:
                        self._lock(piece.lock).unlink(missing_ok=True)
                    if os.path.lexists(piece.path):
                        logger.warning("%s could not be removed whole", piece.path)
                    else:
                        removed.append(piece)
        return removed

    def _payloads(self) -> Iterator[Removable]:
        """Of runs that made no artifact. The runs stay, with their metrics and settings."""
        for record in self._records.values():
            folder = self._runs.get(record.id)
            if record.finished or record.id in self._needed or folder is None or not self._store.is_own(record):
                continue
            if record.id in self._whole and not self._also_unregistered:
                continue
            workdir = self._workdir(record.key, record.id)
            kept = record.id in workdir.runs_left() and workdir.is_resumable and not self._superseded(record)
            if is_held(self._lock(record.key)) or (kept and not self._unfinished):
                continue
            why = f"run {record.title} is {self._store.with_live_status(record).status}"
            for name in (PAYLOAD, f"{PAYLOAD}.partial", MANIFEST):
                yield from self._piece(folder / name, "payload", why, record.key, self._is_unfinished(record))

    def _uploads(self) -> Iterator[Removable]:
        """Partial copies beside the payload of a finished artifact."""
        for record in self._records.values():
            folder = self._runs.get(record.id)
            if record.finished and folder is not None:
                partial = folder / f"{PAYLOAD}.partial"
                yield from self._piece(partial, "upload", f"{record.title} was published without it", record.key)

    def _states(self) -> Iterator[Removable]:
        """States where `DPR_STATES` has them. Other homes keep theirs there, too: what is not known here stays."""
        if (shared := shared_place()) is None:
            return
        runs: dict[tuple[str, str], list[Stored]] = {}
        with reached(shared):
            for name, stored in shared.files().items():
                key, run_id, *_ = [*name.split("/"), ""]
                runs.setdefault((key, run_id), []).append(stored)
        for (key, run_id), kept in sorted(runs.items()):
            if not KEY.fullmatch(key) or not ID.fullmatch(run_id) or is_held(self._lock(key)):
                continue
            record = self._records.get(run_id)
            why, still = None, partial(self._is_over, record)
            if record is None:
                why = f"run {run_id[:8]} was deleted" if run_id in self._deleted else None
            elif record.finished or self._store.turns.is_left_to_us(record):
                why = self._why(record, self._workdir(key, run_id))
            if why is not None:
                size, changed = sum(each.size for each in kept), max(each.changed for each in kept)
                place = shared.inside(f"{key}/{run_id}")
                yield Removable(Path(key) / run_id, "states", why, size, changed, key, still, place)

    def _is_over(self, record: Record | None) -> bool:
        """Whether no machine will go on with a run; from here on none will."""
        return record is None or self._store.record(record.id).finished or self._store.turns.close(record)

    def _work(self) -> Iterator[Removable]:
        for folder in sorted((self._store.home / "work").iterdir()):
            if KEY.fullmatch(folder.name):
                yield from self._workdirs(folder)
            elif ID.fullmatch(folder.name) or folder.name.startswith("tmp"):
                for piece in self._piece(folder, "work", "scratch that was left behind"):
                    if piece.changed <= datetime.now(UTC) - SCRATCH:
                        yield piece

    def _workdirs(self, folder: Path) -> Iterator[Removable]:
        key, run_id = folder.name, StageWorkdir(folder).attempt
        workdir = self._workdir(key, run_id)
        if is_held(self._lock(key)):
            return
        record = None if run_id is None else self._records.get(run_id)
        if record is None:
            if run_id is not None and not self._knows_all:
                return
            why = "it belongs to no run" if run_id is None else f"there is no run {run_id[:8]} any more"
            if run_id is not None and workdir.is_resumable and run_id not in self._deleted and not self._unfinished:
                return
        elif (found := self._why(record, workdir)) is not None:
            why = found
        else:
            return
        yield from self._piece(folder, "work", why, key, lambda: workdir.attempt == run_id)

    def _why(self, record: Record, workdir: StageWorkdir) -> str | None:
        """Why the work of a run can go; None where it is to stay."""
        if record.finished:
            return f"{record.title} is finished"
        if not workdir.is_resumable:
            return f"run {record.title} has nothing here to go on from"
        if self._superseded(record):
            return f"{self._finished[record.key].title} was finished in place of run {record.id[:8]}"
        return f"unfinished: {record.title} would start from its beginning" if self._unfinished else None

    def _cached(self) -> Iterator[Removable]:
        for folder in sorted((self._store.home / "cache").iterdir()):
            if ID.fullmatch(folder.name) and self._knows_all and folder.name not in self._runs:
                yield from self._piece(folder, "cache", "there is no such run any more", folder.name)

    def _runs_deleted(self) -> Iterator[Removable]:
        """Files of runs that were deleted in MLflow, and of runs that MLflow does not know at all."""
        for run_id, folder in self._deleted.items():
            if folder is not None and run_id not in self._needed and not self._is_promoted(run_id):
                yield from self._piece(_run_folder(folder, run_id), "deleted run", "its MLflow run was deleted")
        if self._store.embedded:
            for folder in sorted((self._store.home / "artifacts").iterdir()):
                known = folder.name in self._runs or folder.name in self._deleted or folder.name in self._needed
                if not ID.fullmatch(folder.name) or known or self._is_promoted(folder.name):
                    continue
                is_record = (folder / "artifacts" / "run.json").exists()
                if folder.name not in self._whole and not is_record:
                    still = partial(self._is_still_lost, folder)
                    yield from self._piece(folder, "deleted run", "MLflow has no such run", still_valid=still)
                elif self._also_unregistered:
                    what = "the record of a pipeline" if is_record else "a whole artifact"
                    yield from self._piece(folder, "unregistered", f"{what} that the database does not know")

    @cached_property
    def _registered(self) -> dict[str, Version]:
        return {version.artifact: version for version in self._store.registered_models.all()}

    def _is_promoted(self, run_id: str) -> bool:
        if version := self._registered.get(run_id):
            self.promoted[run_id] = version
        return version is not None

    def _is_still_lost(self, folder: Path) -> bool:
        """Whether it is known to be no artifact, and has not become one of a run that was begun meanwhile."""
        try:
            return whole_manifest(folder / "artifacts") is None and not self._store.has_run(folder.name)
        except OSError:
            return False

    def _locks(self) -> Iterator[Removable]:
        for path in sorted((self._store.home / "locks").iterdir()):
            if LOCK.fullmatch(path.name) and not is_held(path):
                yield from self._piece(path, "lock", "nobody holds it", path.stem)

    def _superseded(self, record: Record) -> bool:
        """Whether the work of a run will never be resumed, because its artifact was made by another."""
        return record.key in self._finished and record.parent not in self._open

    @property
    def _knows_all(self) -> bool:
        """Whether this store has all runs that worked in this home."""
        return self._store.embedded or not (self._store.home / "mlflow.db").exists()

    def _is_unfinished(self, record: Record) -> Callable[[], bool]:
        """Whether it still is, and no other host has taken it over."""
        return lambda: not self._store.record(record.id).finished and self._store.turns.is_left_to_us(record)

    def _workdir(self, key: str, run_id: str | None) -> StageWorkdir:
        return StageWorkdir(self._store.home / "work" / key, run_id)

    def _lock(self, name: str) -> Path:
        return self._store.home / "locks" / f"{name}.lock"

    def _piece(
        self, path: Path, kind: str, why: str, lock: str | None = None, still_valid: Callable[[], bool] = lambda: True
    ) -> Iterator[Removable]:
        if path.is_symlink() or path.exists():
            try:
                files = [path] if path.is_symlink() or path.is_file() else [each for each, _ in files_below(path)]
                states = [each.lstat() for each in (path, *files)]
            except OSError as error:
                logger.warning("%s is left alone: it cannot be read (%s)", path, error.strerror)
                return
            size = sum(state.st_size for state in states[1:])
            changed = datetime.fromtimestamp(max(state.st_mtime for state in states), UTC)
            yield Removable(path, kind, why, size, changed, lock, still_valid)


def needed(records: Collection[Record]) -> set[str]:
    """The finished artifacts, and their ancestors."""
    by_id = {record.id: record for record in records}
    reached: set[str] = set()
    queue = [record.id for record in records if record.finished]
    while queue:
        run_id = queue.pop()
        if run_id not in reached:
            reached.add(run_id)
            queue += by_id[run_id].inputs.values() if run_id in by_id else ()
    return reached


def _removed(place: Folder | Bucket) -> bool:
    """Whether the states of one run could be removed from where machines share them."""
    try:
        remove(place)
    except OSError as error:
        logger.warning("%s could not be removed (%s)", place.where, redact(str(error)))
        return False
    return True


def _run_folder(folder: Path, run_id: str) -> Path:
    """A local store gives every run a folder of its name, with its artifacts in it."""
    return folder.parent if folder.parent.name == run_id else folder
