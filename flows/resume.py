"""Unfinished pipelines and stages, which `dpr resume` can go on with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpr_core.errors import DensePathError, UsageError
from flows.dispatch import dispatch
from flows.requests import Request, RerunRequest, read_request
from tasks.artifacts.parent_runs import ParentRun
from tasks.artifacts.run_records import Record
from tasks.artifacts.store import Store
from tasks.graph import plan

INTERRUPTED = ("INTERRUPTED", "KILLED")


@dataclass(frozen=True)
class Unfinished:
    """A pipeline, or a stage whose pipeline cannot be resumed."""

    run: ParentRun | Record
    request: Request | None
    """None: it cannot be started again, and `note` says why."""
    to_run: list[str]
    reused: int
    note: str = ""

    @property
    def failed(self) -> bool:
        """It ended by itself, and would perhaps do so again: resumed only by name."""
        return self.run.status == "FAILED"

    @property
    def document(self) -> dict[str, Any]:
        return {
            "id": self.run.id,
            "name": self.run.name,
            "status": self.run.status,
            "started": self.run.started.isoformat(),
            "there": self.reused,
            "to_run": self.to_run,
            "note": self.note,
        }


def unfinished(store: Store) -> list[Unfinished]:
    """All of it, pipelines first, the newest of each first; nothing that a live process works on."""
    pipelines = store.parent_runs.resumable()
    covered = {run.id for run in store.parent_runs.all() if run.status == "RUNNING"} | {run.id for run in pipelines}
    stages = [record for record in _interrupted_stages(store) if record.parent not in covered]
    runs: list[ParentRun | Record] = [*pipelines, *stages]
    return [_planned(store, run) for run in runs]


def chosen(every: Sequence[Unfinished], references: Sequence[str]) -> list[Unfinished]:
    """Those that are named, by a prefix of their ID; without any, those that were interrupted."""
    if not references:
        return [each for each in every if not each.failed]
    named = []
    for reference in references:
        prefix = reference.strip().removeprefix("runs:/").lower()
        found = [each for each in every if prefix and each.run.id.startswith(prefix)]
        if len(found) != 1:
            known = ", ".join(each.run.id[:8] for each in every) or "there is nothing unfinished"
            raise UsageError(f"{reference!r} is not one unfinished run; `dpr resume --plan` lists them: {known}")
        named += [each for each in found if each not in named]
    return named


def _planned(store: Store, run: ParentRun | Record) -> Unfinished:
    """A run with its request, and with the stages that are left to run; a stage is resumed by its rerun."""
    try:
        request = read_request(run) if isinstance(run, ParentRun) else RerunRequest(artifact=run.id)
        planned = plan(dispatch(request, store).nodes, store, run.started if request.force else None)
    except DensePathError as error:
        return Unfinished(run, None, [], 0, str(error))
    to_run = [step.name for step in planned if step.status == "run"]
    return Unfinished(run, request, to_run, len(planned) - len(to_run), run.reason)


def _interrupted_stages(store: Store) -> list[Record]:
    """Runs that were interrupted and whose work has not been done since; of those of one key the newest."""
    records = [store.with_live_status(record) for record in store.records()]
    done = {record.key for record in records if record.finished}
    newest: dict[str, Record] = {}
    for record in records:
        if record.key not in done and store.is_own(record):
            newest.setdefault(record.key, record)
    return [record for record in newest.values() if record.status in INTERRUPTED]
