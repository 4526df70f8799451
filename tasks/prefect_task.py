"""Prefect as an observer: work is told to it, a task a stage, and what becomes of the work is not for it to decide."""

import json
import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from contextvars import copy_context
from functools import partial
from typing import Any, Generic, TypeVar

import httpx
from prefect import task
from prefect.artifacts import (
    create_link_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.exceptions import ObjectNotFound, TerminationSignal
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, State

from dpr_core.config.base import StageConfig
from dpr_core.config.evaluation import ChatCompletionsConfig
from dpr_core.errors import DensePathError
from dpr_core.evaluation.budget import BudgetReachedError
from dpr_core.redaction import address, redact
from dpr_core.reporting.report import ReportTable, main_table
from tasks.artifacts.store import Store
from tasks.run_job import run_job
from tasks.run_stage import Outcome, StageJob
from tasks.running.observer import OBSERVER, Observer
from tasks.running.progress import duration
from tasks.running.shutdown import Terminated
from tasks.stages.report import BESIDE, PAGE, TABLE

logger = logging.getLogger("dense_path")

T = TypeVar("T")

AWAY = (httpx.HTTPError, OSError, RuntimeError)
"""What Prefect raises where its server does not answer, or cannot be started."""

RAN, REUSED = "Ran", "Reused"
"""How a stage's task, and its flow run on a work pool, end well: the artifact's ID is the first word of the message."""

STOPPED = "dense-path.guard.stopped"
SPENT = "dense-path.budget.spent"
"""Events, for an automation to act on."""

JUDGING = "judging"
"""The global concurrency limit of judges and raters that cost money, in all processes of a server together."""

TURN_SECONDS = 10.0
"""So often it is looked whether the limit has a free slot, and whether anybody still waits for it."""

PROGRESS_SECONDS = 30.0
"""After so long a stage has a progress bar on its page, and so often it is moved."""

GOODBYE_SECONDS = 2.0
"""How long the end of a stage waits for its progress bar."""


class Observed(Generic[T]):
    """Work that Prefect is told of. What it comes to is its own affair; that the server is lost is warned of once."""

    lost = False
    """By this process. From then on work is done without Prefect."""

    def __init__(self, body: Callable[..., T]) -> None:
        self._body = body
        self._began = False
        self._results: list[T] = []
        self._error: BaseException | None = None

    def __call__(self, *arguments: Any, **named: Any) -> T:
        """What the Prefect run has to call."""
        self._began = True
        try:
            self._results.append(self._body(*arguments, **named))
        except BaseException as error:
            self._error = error
            raise
        return self._results[0]

    def within(self, prefect_run: Callable[[], object], alone: Callable[[], T]) -> T:
        """The outcome of the work, done in a Prefect run or, where the server is lost before it begins, `alone`."""
        if Observed.lost:
            return alone()
        try:
            prefect_run()
        except Exception as error:
            if self._error is error:
                raise
            if self._began and not self._results and self._error is None:
                raise
            if not self._began:
                if not isinstance(error, AWAY):
                    raise
                if url := PREFECT_API_URL.value():
                    raise DensePathError(
                        f"PREFECT_API_URL: the Prefect server at {address(url)} does not take the run "
                        f"({_brief(error)}); nothing was begun. Start it, or unset PREFECT_API_URL"
                    ) from error
            lose(error)
        if isinstance(self._error, TerminationSignal):
            raise Terminated(self._error.signal) from None
        if self._error is not None:
            raise self._error
        return self._results[0] if self._results else alone()


def lose(error: Exception) -> None:
    """Go on without Prefect's server: say so once, and send it nothing more, which would take minutes at the end."""
    if not Observed.lost:
        Observed.lost = True
        logger.warning(
            "Prefect's server is gone (%s). What is made does not depend on it, and goes on; "
            "its pages may lack the end of this run",
            _brief(error),
        )
    if PREFECT_API_URL.value() is None and (process := SubprocessASGIServer().server_process) is not None:
        process.kill()  # one that hangs would be waited for at every request
    _drop_unsent_events()


def _drop_unsent_events() -> None:
    """Prefect would try each again at its end, and has no public way to be told not to."""
    with suppress(ImportError):
        from prefect._internal.concurrency.services import _active_services

        for service in list(_active_services):
            with suppress(queue.Empty):
                while True:
                    service._queue.get_nowait()


def _brief(error: Exception) -> str:
    first = (str(error) or type(error).__name__).splitlines()[0]
    return first if len(first) <= 100 else first[:97] + "..."


@task(name="stage", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def _stage(name: str, work: Callable[[], Outcome]) -> State[Any]:
    return final_state(work())


def final_state(outcome: Outcome) -> State[Any]:
    """How the task of a stage ends: the artifact's ID, and why it was made or not."""
    if outcome.status == "reused":
        return Completed(name=REUSED, message=redact(f"{outcome.id} reused: {outcome.why or 'it was there'}"))
    why = f", because: {outcome.why}" if outcome.why else ""
    return Completed(name=RAN, message=redact(f"{outcome.id} made in {duration(outcome.seconds)}{why}"))


def stage_task(job: StageJob, run: Callable[[StageJob], Outcome] = run_job) -> Outcome:
    """Run a stage or reuse its artifact, here or in a process that `run` sends it to, as a Prefect task."""
    work = Observed(lambda: watched(job, run))
    return work.within(lambda: _stage(job.name, work), lambda: run(job))


def watched(job: StageJob, run: Callable[[StageJob], Outcome]) -> Outcome:
    """Run a stage with what its task's page shows of it meanwhile, and tell of what ended it early."""
    watch = Watch(job.name)
    before = OBSERVER.set(watch)
    try:
        outcome = run(job)
    except BudgetReachedError as error:
        _tell(partial(_emit, SPENT, job, error.run, {"why": str(error)}))
        raise
    finally:
        OBSERVER.reset(before)
        watch.end()
    # What another flow run made, that one tells of; only it knows why.
    if outcome.status == "ran" and outcome.why and (stopped := outcome.metrics.get("guard/stopped_at_iteration")):
        kept = outcome.metrics.get("guard/kept_iteration")
        _tell(partial(_emit, STOPPED, job, outcome.id, {"stopped_at_iteration": stopped, "kept_iteration": kept}))
    return outcome


def _tell(what: Callable[[], object]) -> None:
    """Tell Prefect something that nothing depends on: where it cannot be told now, it is left out."""
    if Observed.lost or FlowRunContext.get() is None:
        return
    try:
        what()
    except Exception as error:
        logger.debug("Prefect was not told: %s", error)


def _tell_aside(what: Callable[[], object]) -> threading.Thread:
    """The same in a thread of its own, which nobody has to wait for."""
    thread = threading.Thread(target=copy_context().run, args=(_tell, what), daemon=True)
    thread.start()
    return thread


def _emit(event: str, job: StageJob, run: str | None, payload: Mapping[str, Any]) -> None:
    """An event of a stage. Prefect itself relates it to the flow run and the task run."""
    url = Store.open().run_url(run) if run else ""
    emit_event(
        event,
        resource={
            "prefect.resource.id": f"mlflow.run.{run}",
            "prefect.resource.name": job.name,
            "dense-path.stage": job.stage,
            "dense-path.url": url,
        },
        related=[{"prefect.resource.id": f"mlflow.run.{job.parent}", "prefect.resource.role": "pipeline"}]
        if job.parent
        else [],
        payload={**payload, "stage": job.stage, "name": job.name, "mlflow_run": run, "url": url},
    )


class Watch(Observer):
    """What Prefect shows of a stage at work: how far it is, once it has taken a while."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._began = time.monotonic()
        self._percent, self._said = 0.0, ""
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    def turn(
        self, stage: str, config: StageConfig, wanted: Callable[[], bool] = lambda: True
    ) -> AbstractContextManager[object]:
        paid = isinstance(getattr(config, "by", None), ChatCompletionsConfig)
        limited = paid and PREFECT_API_URL.value() and not Observed.lost
        return self._slot(JUDGING, wanted) if limited else nullcontext()

    @contextmanager
    def _slot(self, limit: str, wanted: Callable[[], bool]) -> Iterator[None]:
        """A slot of a global concurrency limit, where the server has that limit and answers."""
        held = ExitStack()
        told = False
        try:
            from prefect.concurrency.sync import concurrency

            slot = partial(concurrency, limit, timeout_seconds=TURN_SECONDS, raise_on_lease_renewal_failure=False)
            with get_client(sync_client=True) as client:
                while wanted():
                    found = client.read_global_concurrency_limit_by_name(limit)
                    if not found.active or found.active_slots < found.limit:
                        with suppress(TimeoutError):  # another was quicker
                            held.enter_context(slot())
                            break
                    if not told:
                        logger.info("%s waits for its turn: Prefect's limit %s is full", self._name, limit)
                        told = True
                    time.sleep(TURN_SECONDS)
        except ObjectNotFound:
            pass
        except AWAY as error:
            logger.warning("Prefect does not answer (%s); its limit %s is not respected", _brief(error), limit)
        try:
            yield
        finally:
            with suppress(*AWAY):
                held.close()

    def progress(self, step: int, total: int | None, note: str) -> None:
        if not total:
            return
        self._percent, self._said = 100 * min(step / total, 1), f"{step} of {total}{note and f', {note}'}"
        if self._thread is None and time.monotonic() - self._began >= PROGRESS_SECONDS:
            self._thread = _tell_aside(self._show)

    def end(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(GOODBYE_SECONDS)

    def _show(self) -> None:
        artifact = create_progress_artifact(
            self._percent, key=f"progress-{_key(self._name)}", description=redact(f"{self._name}: {self._said}")
        )
        over = False
        while not over and not Observed.lost:
            over = self._ended.wait(PROGRESS_SECONDS)
            with suppress(*AWAY):
                update_progress_artifact(artifact, self._percent, redact(f"{self._name}: {self._said}"))


def tag_run(tags: Iterable[str]) -> None:
    """Tags of this flow run, beside those that it has."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    run, wanted = context.flow_run.id, {*context.flow_run.tags, *tags}

    def update() -> None:
        with get_client(sync_client=True) as client:
            client.update_flow_run(run, tags=wanted)

    _tell_aside(update)


def link_runs(store: Store, document: Mapping[str, Any]) -> None:
    """On the flow run's page: links to the MLflow runs and the reports, and the win rates of each report."""
    if Observed.lost:
        return
    rows = [
        {
            "stage": entry["name"],
            "status": entry["status"],
            "seconds": entry["seconds"],
            "artifact": f"[{entry['id']}]({store.run_url(entry['id'])})",
        }
        for entry in document["stages"]
    ]
    pipeline = store.run_url(document["run_id"])
    try:
        create_table_artifact(rows, key="mlflow-runs", description=f"[Pipeline run]({pipeline})")
        create_link_artifact(pipeline, "The pipeline's run in MLflow", key="mlflow")
        for entry in document["stages"]:
            if entry["stage"] == "report" and (table := _table_of(store, entry["id"])) is not None:
                _show_report(store, entry, table)
    except AWAY as error:
        lose(error)


def _table_of(store: Store, report: str) -> ReportTable | None:
    """None where it cannot be read: everything is made, and this would only be shown."""
    try:
        return ReportTable.of(json.loads((store.fetch(report).path / TABLE).read_text(encoding="utf-8")))
    except (DensePathError, OSError, LookupError, TypeError, ValueError) as error:
        logger.warning("the report %s is not shown in Prefect: %s", report[:8], error)
        return None


def _show_report(store: Store, entry: Mapping[str, Any], table: ReportTable) -> None:
    name = entry["name"]
    page = f"{store.run_url(entry['id'])}/artifacts/{BESIDE}/{PAGE}"
    create_link_artifact(page, redact(f"{name}: the page"), key=_key(name))
    shown = main_table(table)
    create_table_artifact(
        [dict(zip(shown.headings, row, strict=True)) for row in shown.rows],
        key=f"win-rates-{_key(name)}",
        description=redact(f"{table.title}: {table.estimand}. [The report]({page})"),
    )


def _key(name: str) -> str:
    """A name as the key of an artifact may be."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
