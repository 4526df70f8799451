"""Prefect as an observer: work is told to it, a task a stage, and what becomes of the work is not for it to decide."""

import logging
import queue
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Generic, TypeVar

import httpx
from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import TerminationSignal
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL

from dpr_core.errors import DensePathError
from dpr_core.redaction import address
from tasks.artifacts.store import Store
from tasks.run_stage import Outcome, StageJob, run_job
from tasks.running.shutdown import Terminated

logger = logging.getLogger("dense_path")

T = TypeVar("T")

AWAY = (httpx.HTTPError, OSError, RuntimeError)
"""What Prefect raises where its server does not answer, or cannot be started."""


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
def _stage(name: str, work: Callable[[], Outcome]) -> Outcome:
    return work()


def stage_task(job: StageJob, run: Callable[[StageJob], Outcome] = run_job) -> Outcome:
    """Run a stage or reuse its artifact, here or in a process that `run` sends it to, as a Prefect task."""
    work = Observed(lambda: run(job))
    return work.within(lambda: _stage(job.name, work), lambda: run(job))


def link_runs(store: Store, document: Mapping[str, Any]) -> None:
    """Links to the MLflow runs on the flow run's page."""
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
    try:
        create_table_artifact(
            rows, key="mlflow-runs", description=f"[Pipeline run]({store.run_url(document['run_id'])})"
        )
    except AWAY as error:
        lose(error)
