"""What was begun and not brought to an end, and going on with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpr_core.errors import DensePathError, UsageError
from flows.requests import Asked, Rerun, asked_of
from tasks.artifacts.parent_runs import Pipeline
from tasks.artifacts.run_records import Record
from tasks.artifacts.store import Store
from tasks.graph import plan

INTERRUPTED = ("INTERRUPTED", "KILLED")


@dataclass(frozen=True)
class Unfinished:
    """A pipeline, or a stage whose pipeline will not be gone on with."""

    run: Pipeline | Record
    asked: Asked | None
    """None: it cannot be started again, and `note` says why."""
    to_run: list[str]
    there: int
    note: str = ""

    @property
    def failed(self) -> bool:
        """It ended by itself, and would perhaps do so again: gone on with only where it is named."""
        return self.run.status == "FAILED"

    @property
    def document(self) -> dict[str, Any]:
        return {
            "id": self.run.id,
            "name": self.run.name,
            "status": self.run.status,
            "started": self.run.started.isoformat(),
            "there": self.there,
            "to_run": self.to_run,
            "note": self.note,
        }


def unfinished(store: Store) -> list[Unfinished]:
    """All of it, pipelines first, the newest of each first. What a process is still at is none of it."""
    pipelines = store.pipelines.to_go_on()
    found = [_of_pipeline(store, pipeline) for pipeline in pipelines]
    covered = {pipeline.id for pipeline in store.pipelines.all() if pipeline.status == "RUNNING"}
    covered |= {pipeline.id for pipeline in pipelines}
    return found + [_of_stage(store, record) for record in _stages(store) if record.parent not in covered]


def chosen(there: Sequence[Unfinished], references: Sequence[str]) -> list[Unfinished]:
    """Those that are named, by a prefix of their ID; without any, those that were interrupted."""
    if not references:
        return [each for each in there if not each.failed]
    named = []
    for reference in references:
        asked = reference.strip().removeprefix("runs:/").lower()
        found = [each for each in there if asked and each.run.id.startswith(asked)]
        if len(found) != 1:
            known = ", ".join(each.run.id[:8] for each in there) or "there is nothing unfinished"
            raise UsageError(f"{reference!r} is not one unfinished run; `dpr resume --plan` lists them: {known}")
        named += found
    return named


def go_on(each: Unfinished) -> dict[str, Any]:
    """Bring it to its end; returns the document of the run."""
    if each.asked is None:
        raise DensePathError(each.note)
    return each.asked.start()


def _of_pipeline(store: Store, pipeline: Pipeline) -> Unfinished:
    try:
        return _planned(store, pipeline, asked_of(pipeline), pipeline.reason)
    except DensePathError as error:
        return Unfinished(pipeline, None, [], 0, str(error))


def _of_stage(store: Store, record: Record) -> Unfinished:
    try:
        return _planned(store, record, Rerun(artifact=record.id), record.reason)
    except DensePathError as error:
        return Unfinished(record, None, [], 0, str(error))


def _planned(store: Store, run: Pipeline | Record, asked: Asked, note: str) -> Unfinished:
    planned = plan(asked.nodes(store), store, run.started if asked.force else None)
    to_run = [step.name for step in planned if step.status == "run"]
    return Unfinished(run, asked, to_run, len(planned) - len(to_run), note)


def _stages(store: Store) -> list[Record]:
    """Attempts that were interrupted and whose work has not been done since; of those at one key the newest."""
    records = [store.seen(record) for record in store.records()]
    done = {record.key for record in records if record.finished}
    newest: dict[str, Record] = {}
    for record in records:
        if record.key not in done and store.is_own(record):
            newest.setdefault(record.key, record)
    return [record for record in newest.values() if record.status in INTERRUPTED]
