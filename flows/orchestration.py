"""The flow of a request around its work: its outcome is the work's, and a flow run that is cancelled in Prefect ends.

A worker ends the processes of cancelled flow runs. One that has lost its server for a while no longer hears of them, so
the process asks for itself.
"""

import contextvars
import functools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar, cast
from uuid import UUID

import prefect
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.context import FlowRunContext
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)
from prefect.states import Cancelled, Running, State

from tasks.prefect_task import Observed
from tasks.running import shutdown

logger = logging.getLogger("dense_path")

P = ParamSpec("P")
T = TypeVar("T")
Document = dict[str, Any]

POLL_SECONDS = 5.0
GRACE_SECONDS = 15.0
"""How long a worker has to end a flow run that is cancelled before the process itself does."""

_WORK: contextvars.ContextVar["Observed[Any] | None"] = contextvars.ContextVar("work", default=None)
_CANCELLED: set[UUID] = set()


def body(work: Callable[P, T]) -> Callable[P, T]:
    """The body of a flow: what is returned or raised here is what `run_flow` returns or raises."""

    @functools.wraps(work)
    def of_a_flow(*arguments: P.args, **named: P.kwargs) -> T:
        with _ending_when_cancelled():
            observed = _WORK.get()
            return work(*arguments, **named) if observed is None else cast(T, observed(work, *arguments, **named))

    return of_a_flow


def run_flow(start: Callable[[], object], alone: Callable[[], Document]) -> Document:
    """The document of a flow's body, whatever becomes of Prefect; `alone` if its server is lost before that."""
    work: Observed[Document] = Observed(lambda work, *arguments, **named: work(*arguments, **named))
    before = _WORK.set(work)
    try:
        return work.within(start, alone)
    finally:
        _WORK.reset(before)


def _say_cancelled(flow: Any, flow_run: FlowRun, state: Any) -> None:
    """A process that is told to end does not know why, unless it told itself."""
    if flow_run.id in _CANCELLED:
        _set_state(flow_run.id, Cancelled(message="Ended where nothing was lost."))


def _set_state(flow_run: UUID, state: State[Any]) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run, state, force=True)


flow = functools.partial(prefect.flow, on_crashed=[_say_cancelled])
"""As Prefect's, for the flows of this package."""


@contextmanager
def _ending_when_cancelled() -> Iterator[None]:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or PREFECT_API_URL.value() is None:
        yield
        return
    done = threading.Event()
    watch = functools.partial(end_when_cancelled, context.flow_run.id, done, _state_of)
    threading.Thread(target=contextvars.copy_context().run, args=(watch,), daemon=True).start()
    try:
        yield
    finally:
        done.set()


def end_when_cancelled(flow_run: UUID, done: threading.Event, state_of: Callable[[UUID], StateType | None]) -> None:
    """Send this process the SIGTERM that the worker of a cancelled flow run owes it; training ends at a safe point."""
    since = None
    while not done.wait(POLL_SECONDS):
        state = state_of(flow_run)
        if state in (StateType.CRASHED, StateType.SCHEDULED) and not (done.is_set() or shutdown.requested.is_set()):
            # A server that was away heard no heartbeats. What has crashed cannot be cancelled, and what is scheduled
            # again would be done by a second process.
            _say_running(flow_run)
        if state not in (StateType.CANCELLING, StateType.CANCELLED):
            since = None
        elif since is None:
            since = time.monotonic()
        elif time.monotonic() - since >= GRACE_SECONDS and not shutdown.requested.is_set():
            logger.info("the flow run was cancelled in Prefect")
            _CANCELLED.add(flow_run)
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _say_running(flow_run: UUID) -> None:
    try:
        _set_state(flow_run, Running(message="Its process lives: the server did not hear of it for a while."))
    except Exception as error:
        logger.debug("Prefect was not told that %s lives: %s", flow_run, error)


def _state_of(flow_run: UUID) -> StateType | None:
    """None where the server does not say."""
    try:
        impatient = {PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: 2 * POLL_SECONDS}
        with temporary_settings(impatient), get_client(sync_client=True) as client:
            return client.read_flow_run(flow_run).state_type
    except Exception as error:
        logger.debug("Prefect does not say whether %s is cancelled: %s", flow_run, error)
        return None
