"""Unfinished pipelines and stages, which `dpr resume` can go on with."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
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
class UnderWay:
    """A pipeline, or a stage that is run alone, at which another machine is."""

    id: str
    name: str
    where: str

    @property
    def document(self) -> dict[str, Any]:
        return {"id": self.id, "name": self.name, "where": self.where}


@dataclass(frozen=True)
class Unfinished:
    """A pipeline, or a stage whose pipeline cannot be resumed."""

    run: ParentRun | Record
    request: Request | None
    """None: it cannot be started again, and `note` says why."""
    to_run: list[str]
    reused: int
    note: str = ""
    where: str = ""
    """The other machine that left it, if one did."""

    @property
    def failed(self) -> bool:
        """It ended by itself, and would perhaps do so again: resumed only by name."""
        return self.run.status == "FAILED"

    @property
    def is_anothers(self) -> bool:
        """It was stopped on another machine, perhaps on purpose: resumed only by name."""
        return bool(self.where) and self.run.status == "KILLED"

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
            "where": self.where,
        }


def unfinished(store: Store) -> tuple[list[Unfinished], list[UnderWay]]:
    """All of it, pipelines first, the newest of each first; nothing that a live process works on. And what other
    machines are at. Where a run of another machine is, it is watched until that is known."""
    store.parent_runs.watch()
    pipelines = store.parent_runs.resumable()
    running = [run for run in store.parent_runs.all() if run.status == "RUNNING"]
    stages, wheres = _interrupted_stages(store, {run.id for run in [*running, *pipelines]})
    elsewhere = [UnderWay(run.id, run.name, run.elsewhere) for run in running if run.elsewhere]
    elsewhere += [UnderWay(each.id, each.name, wheres[each.id]) for each in stages if each.status == "RUNNING"]
    left = [_planned(store, run, run.elsewhere) for run in pipelines]
    left += [_planned(store, each, wheres.get(each.id, "")) for each in stages if each.status in INTERRUPTED]
    return left, elsewhere


def chosen(every: Sequence[Unfinished], references: Sequence[str]) -> list[Unfinished]:
    """Those that are named, by a prefix of their ID; without any, those that were interrupted."""
    if not references:
        return [each for each in every if not (each.failed or each.is_anothers)]
    named = []
    for reference in references:
        prefix = reference.strip().removeprefix("runs:/").lower()
        found = [each for each in every if prefix and each.run.id.startswith(prefix)]
        if len(found) != 1:
            known = ", ".join(each.run.id[:8] for each in every) or "there is nothing unfinished"
            raise UsageError(f"{reference!r} is not one unfinished run; `dpr resume --plan` lists them: {known}")
        named += [each for each in found if each not in named]
    return named


def _planned(store: Store, run: ParentRun | Record, where: str) -> Unfinished:
    """A run with its request, and with the stages that are left to run; a stage is resumed by its rerun."""
    try:
        request = read_request(run) if isinstance(run, ParentRun) else RerunRequest(artifact=run.id)
        planned = plan(dispatch(request, store).nodes, store, run.started if request.force else None)
    except DensePathError as error:
        return Unfinished(run, None, [], 0, str(error), where)
    to_run = [step.name for step in planned if step.status == "run"]
    return Unfinished(run, request, to_run, len(planned) - len(to_run), run.reason, where)


def _interrupted_stages(store: Store, covered: Collection[str]) -> tuple[list[Record], dict[str, str]]:
    """Runs without such a pipeline that were interrupted, or are under way on another machine, and whose work has not
    been done since, of those of one key the newest; and where the others are, or were."""
    records = [store.with_live_status(record) for record in store.records()]
    done = {record.key for record in records if record.finished}
    alone = [each for each in records if each.key not in done and each.parent not in covered]
    theirs = store.turns.elsewhere([each for each in alone if each.status == "RUNNING" and not store.is_own(each)])
    newest: dict[str, Record] = {}
    for record in alone:
        if record.id in theirs and theirs[record.id][1]:
            newest.setdefault(record.key, replace(record, status="INTERRUPTED"))
        elif record.id in theirs or store.is_own(record):
            newest.setdefault(record.key, record)
    found = [each for each in newest.values() if each.status in INTERRUPTED or each.id in theirs]
    return found, {run_id: where for run_id, (where, _) in theirs.items()}
