"""Placement of stages on Prefect work pools: each is a flow run of `placed`, done by a worker of its pool."""

import hashlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, WorkPoolFilter, WorkPoolFilterName
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelling

import dpr_core
from dpr_core.errors import DensePathError, UsageError
from dpr_core.redaction import address
from tasks.artifacts.identity import canonical_json
from tasks.artifacts.retrying import is_transient, retry_seconds
from tasks.artifacts.store import Store
from tasks.prefect_task import RAN, REUSED
from tasks.registry import stage_named
from tasks.run_stage import Outcome, StageJob

logger = logging.getLogger("dense_path")

T = TypeVar("T")

FLOW = "placed"
DEPLOY = "python deployments/setup.py"

DEFAULT = "default"
"""The queue of a work pool that has what is sent to none by name."""

REFUSED = "Refused"
"""Of the state in which it ends where the request was wrong; the message is the sentence, as in `Failed`."""

POLL_SECONDS = 5.0
MOST_STARTS = 3
"""Of a stage whose flow run crashes, as when its worker is killed."""
GOODBYE_SECONDS = 15.0
"""How long it is waited for that a cancelled flow run ends."""
CRASHED_POLLS = 6
"""So often one that is said to have crashed is looked at again: after an outage of the server its process may live, and
says so (flows/orchestration.py)."""

LEFT = "left by its controller"
"""Tag of a flow run that a controller which ended has cancelled: others that wait for it have it started again."""


class Server:
    """What is asked of the Prefect server."""

    def ask(self, question: Callable[[SyncPrefectClient], T]) -> T:
        if not PREFECT_API_URL.value():
            raise UsageError("work pools are a Prefect server's: set PREFECT_API_URL (docs/operations.md)")
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), get_client(sync_client=True) as client:
            return question(client)

    def check(self, place: str) -> list[str]:
        """Refuse a place that there is not; returns what is to be warned of."""
        pool, _, queue = place.partition("/")
        found = self.ask(lambda client: _or_none(lambda: client.read_work_pool(pool)))
        if found is None:
            raise UsageError(
                f"there is no work pool {pool!r}; make it with: prefect work-pool create {pool!r} --type process"
            )
        line = self.ask(lambda client: _or_none(lambda: client.read_work_queue_by_name(queue or DEFAULT, pool)))
        if queue and line is None:
            raise UsageError(
                f"the work pool {pool} has no queue {queue!r}; make it with: "
                f"prefect work-queue create {queue!r} --pool {pool!r}"
            )
        self.deployment(pool)
        workers = self.ask(lambda client: client.read_workers_for_work_pool(pool))
        if found.is_paused:
            return [f"the work pool {pool} is paused: what is placed there waits until it is resumed"]
        if line is not None and line.is_paused:
            return [
                f"the queue {line.name} of the work pool {pool} is paused: what is placed there waits until it is "
                "resumed"
            ]
        if not any(worker.status == WorkerStatus.ONLINE for worker in workers):
            return [
                f"the work pool {pool} has no worker: what is placed there waits for one; start it with: "
                f"prefect worker start --pool {pool}"
            ]
        return []

    def deployment(self, pool: str) -> UUID:
        found = self.ask(
            lambda client: client.read_deployments(
                flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW])),
                work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
                limit=1,
            )
        )
        if not found:
            raise UsageError(
                f"the flow {FLOW} is not deployed on the work pool {pool!r}, so that no stage can be placed there; "
                f"deploy it with: {DEPLOY}"
            )
        return found[0].id

    def start(self, place: str, name: str, parameters: dict[str, Any], key: str) -> FlowRun:
        """A flow run of this key: a new one, or the one that there is."""
        pool, _, queue = place.partition("/")
        deployment = self.deployment(pool)
        return self.ask(
            lambda client: client.create_flow_run_from_deployment(
                deployment,
                name=name,
                parameters=parameters,
                idempotency_key=key,
                parent_task_run_id=_own_task_run(client),
                work_queue_name=queue or None,
            )
        )

    def read(self, flow_run: UUID) -> FlowRun:
        return self.ask(lambda client: client.read_flow_run(flow_run))

    def cancel(self, flow_run: UUID) -> None:
        def leave(client: SyncPrefectClient) -> None:
            client.update_flow_run(flow_run, tags={*client.read_flow_run(flow_run).tags, LEFT})
            client.set_flow_run_state(flow_run, Cancelling())

        self.ask(leave)


def _or_none(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except ObjectNotFound:
        return None


def _unanswered(error: httpx.HTTPError) -> str:
    return f"the Prefect server at {address(PREFECT_API_URL.value() or '')} does not answer: {error}"


def _own_task_run(client: SyncPrefectClient) -> UUID | None:
    """The Prefect task that waits, once the server knows it, so that the flow run is shown below it."""
    context = TaskRunContext.get()
    if context is None:
        return None
    for _ in range(20):
        if _or_none(partial(client.read_task_run, context.task_run.id)) is not None:
            return context.task_run.id
        time.sleep(0.1)
    return None


class WorkPools:
    """The stages of one run that are done by the workers of pools. Those still waited for at the end of the block are
    cancelled."""

    def __init__(self, store: Store, server: Server | None = None) -> None:
        self._store = store
        self._server = server or Server()
        self._waited: set[UUID] = set()
        self._told: set[UUID] = set()
        self._ending = threading.Event()

    def problems(self, places: Iterable[str]) -> list[str]:
        """Why what is placed there could never be done. What would have to wait for a worker is warned of."""
        found = []
        for place in sorted(set(places)):
            try:
                for warning in self._server.check(place):
                    logger.warning(warning)
            except UsageError as error:
                found.append(str(error))
            except httpx.HTTPError as error:
                found.append(_unanswered(error))
        return list(dict.fromkeys(found))

    def check(self, places: Iterable[str]) -> None:
        """Refuse what could never be done there."""
        if found := self.problems(places):
            raise UsageError("\n".join(found))

    def run(self, job: StageJob, place: str) -> Outcome:
        """Have a stage done on a pool, and wait for it; safe to call from many threads."""
        began = time.monotonic()
        flow_run = self._ended(job, place)
        state = flow_run.state
        assert state is not None
        words = state.message or "its page in Prefect says more"
        if state.type == StateType.COMPLETED and state.name in (RAN, REUSED):
            logger.info("%s: %s as %s", job.name, state.name.lower(), words)
            return self._outcome(
                job, words.split()[0], "ran" if state.name == RAN else "reused", time.monotonic() - began
            )
        if state.type == StateType.FAILED:
            raise UsageError(words) if state.name == REFUSED else DensePathError(words)
        raise DensePathError(f"flow run {flow_run.name} on the work pool {place} ended as {state.name}: {words}")

    def _outcome(self, job: StageJob, artifact: str, status: Any, seconds: float) -> Outcome:
        try:
            record = self._store.record(artifact)
        except UsageError:
            raise DensePathError(
                f"{job.name} was made as {artifact[:8]}, which is not in this store: workers need the same MLflow as "
                "this (MLFLOW_TRACKING_URI)"
            ) from None
        return Outcome(job.stage, job.name, record.id, status, seconds, record.results)

    def _ended(self, job: StageJob, place: str) -> FlowRun:
        """The flow run that did it, or could not. One that is under way, as of an interrupted run, is waited for."""
        parameters = {
            "stage": job.stage,
            "name": job.name,
            "config": job.config.model_dump(mode="json"),
            "inputs": dict(job.inputs),
            "parent": job.parent,
            "not_before": job.not_before.isoformat() if job.not_before else None,
            "origin": job.origin,
            "version": dpr_core.__version__,
            "stage_version": _stage_version(job),
        }
        starts = 0
        for attempt in itertools.count(1):
            self._pause(job.name, 0)
            key = _key(job, place, attempt)
            flow_run = self._patiently(partial(self._server.start, place, job.name, parameters, key))
            if _is_over(flow_run):
                continue  # an earlier one's
            logger.info("%s: on the work pool %s, flow run %s", job.name, place, flow_run.id)
            flow_run = self._waited_for(flow_run.id, job.name)
            if LEFT in flow_run.tags and flow_run.state_type != StateType.COMPLETED:
                continue  # another controller's end
            starts += 1
            if flow_run.state_type != StateType.CRASHED or starts == MOST_STARTS:
                break
            logger.warning(
                "%s: its flow run crashed (%s); it is started again",
                job.name,
                flow_run.state and flow_run.state.message,
            )
        return flow_run

    def _waited_for(self, flow_run: UUID, name: str) -> FlowRun:
        self._waited.add(flow_run)
        if self._ending.is_set():  # it was started while the others were cancelled
            self._say_goodbye(time.monotonic() + GOODBYE_SECONDS)
        crashed = 0
        while True:
            found = self._patiently(partial(self._server.read, flow_run))
            self._pause(name, 0)  # what has been told to end is the block's to wait for
            crashed = crashed + 1 if found.state_type == StateType.CRASHED else 0
            if _is_over(found) and not 0 < crashed <= CRASHED_POLLS:
                self._waited.discard(flow_run)
                return found
            self._pause(name)

    def _patiently(self, request: Callable[[], T]) -> T:
        """A server that is away is waited for: the work goes on in the meantime."""
        since = time.monotonic()
        while True:
            try:
                return request()
            except ObjectNotFound as error:
                raise DensePathError("its flow run, or what it needs, was deleted in Prefect") from error
            except httpx.HTTPError as error:
                if not (isinstance(error, httpx.TransportError) or is_transient(error)):
                    where = address(PREFECT_API_URL.value() or "")
                    words = f"after another version of dense-path is installed, deploy again with: {DEPLOY}"
                    raise DensePathError(f"the Prefect server at {where} refuses this: {error}; {words}") from error
                if time.monotonic() - since > retry_seconds():
                    raise DensePathError(_unanswered(error)) from error
            self._pause("this run")

    def _pause(self, name: str, seconds: float | None = None) -> None:
        if self._ending.wait(POLL_SECONDS if seconds is None else seconds):
            raise DensePathError(f"{name}: not waited for, because the run is ending")

    def __enter__(self) -> "WorkPools":
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()
        deadline = time.monotonic() + GOODBYE_SECONDS
        while self._waited and time.monotonic() < deadline:
            time.sleep(0.5)
            self._say_goodbye(deadline)
        if untold := self._waited - self._told:
            logger.warning("Prefect does not answer: cancel there what is left: %s", ", ".join(map(str, untold)))

    def cancel(self) -> None:
        """Tell those still waited for to end; the end of the block waits for that."""
        if self._waited and not self._ending.is_set():
            logger.warning("%d stages on work pools are cancelled", len(self._waited))
        self._ending.set()
        self._say_goodbye(time.monotonic() + GOODBYE_SECONDS)

    def _say_goodbye(self, deadline: float) -> None:
        """Tell each to end, once, and see which have."""
        for flow_run in list(self._waited):
            if time.monotonic() > deadline:
                return
            try:
                if flow_run not in self._told:
                    self._server.cancel(flow_run)
                    self._told.add(flow_run)
                state = self._server.read(flow_run).state
                if state is not None and state.is_final():
                    self._waited.discard(flow_run)
            except ObjectNotFound:
                self._waited.discard(flow_run)
            except httpx.HTTPError as error:
                logger.debug("Prefect does not cancel %s: %s", flow_run, error)


def _is_over(flow_run: FlowRun) -> bool:
    """One that is being cancelled makes nothing any more, and stays so where its worker is gone."""
    return flow_run.state is not None and (flow_run.state.is_final() or flow_run.state.is_cancelling())


def _key(job: StageJob, place: str, attempt: int) -> str:
    """Equal for controllers that want the same, who then share one flow run."""
    since = job.not_before.isoformat() if job.not_before else None
    version = [dpr_core.__version__, _stage_version(job)]
    what = [place, job.stage, version, job.config.identity(), dict(job.inputs), since, attempt]
    return hashlib.sha256(canonical_json(what).encode()).hexdigest()


def _stage_version(job: StageJob) -> int:
    return stage_named(job.stage).version_of(job.config)


def own_pool() -> str | None:
    """The work pool that has started this process's flow run, if one has."""
    context = FlowRunContext.get()
    return context.flow_run.work_pool_name if context is not None and context.flow_run is not None else None
