"""A sweep over a Prefect work pool: every point is a flow run of a deployment, made by the pool's workers."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, WorkPoolFilter, WorkPoolFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.deployments.flow_runs import arun_deployment

from dpr_core.errors import UsageError
from flows.merging import MergedStudies
from tasks.artifacts.retrying import is_transient, retry_seconds
from tasks.graph import Planned

FLOW = "dense-path"

POLL_SECONDS = 5.0

Submit = Callable[[UUID, str, dict[str, Any]], Awaitable[FlowRun]]
"""Starts a flow run of a deployment under a name, with parameters, and waits until it has flow_run."""


async def submit(deployment: UUID, name: str, parameters: dict[str, Any]) -> FlowRun:
    started = await arun_deployment(deployment, flow_run_name=name, parameters=parameters, timeout=0)

    async def read() -> FlowRun:
        async with get_client() as client:
            return await client.read_flow_run(started.id)

    return await ended(read, retry_seconds())


async def ended(read: Callable[[], Awaitable[FlowRun]], patience: float) -> FlowRun:
    """The flow run once it has ended. A server that is away is waited for: the work goes on in the meantime."""
    answered = time.monotonic()
    while True:
        try:
            flow_run = await read()
        except httpx.HTTPError as error:
            away = isinstance(error, httpx.TransportError) or is_transient(error)
            if not away or time.monotonic() - answered > patience:
                raise
        else:
            answered = time.monotonic()
            if flow_run.state is not None and flow_run.state.is_final():
                return flow_run
        await asyncio.sleep(POLL_SECONDS)


def run_points(
    studies: MergedStudies, planned: Sequence[Planned], name: str, pool: str, send: Submit = submit
) -> dict[str, str]:
    """Run every point whose report is missing; returns why some failed, by the names of the points."""
    return asyncio.run(_run_points(studies, planned, name, pool, send))


async def _run_points(
    studies: MergedStudies, planned: Sequence[Planned], name: str, pool: str, send: Submit
) -> dict[str, str]:
    deployment = await deployment_on(pool)
    names = list(studies.reports)
    configs = [point.config for points in studies.points for point in points]
    problems: dict[str, str] = {}

    async def point(index: int) -> None:
        parameters = {"config": configs[index].model_dump(mode="json")}
        flow_run = await send(deployment, f"{name}, {names[index]}", parameters)
        if flow_run.state is None or not flow_run.state.is_completed():
            state = flow_run.state.name if flow_run.state else "no state"
            why = (flow_run.state.message if flow_run.state else None) or "its page in Prefect says more"
            problems[names[index]] = f"flow run {flow_run.name} ended as {state}: {why}"

    async def group(first: int, *others: int) -> None:
        await point(first)
        await asyncio.gather(*map(point, others))

    await asyncio.gather(*(group(*members) for members in groups(studies, planned)))
    return problems


def groups(studies: MergedStudies, planned: Sequence[Planned]) -> list[list[int]]:
    """Points to run, grouped where they need the same stage. The first of a group makes it for the others."""
    to_run = {step.name for step in planned if step.status == "run"}
    found: dict[object, list[int]] = {}
    for index, report in enumerate(studies.graph.reports):
        if report in to_run:
            found.setdefault(_first_shared(studies, to_run, index), []).append(index)
    return list(found.values())


def _first_shared(studies: MergedStudies, to_run: set[str], index: int) -> object:
    for node, users in zip(studies.graph.nodes, studies.graph.points_of, strict=True):
        if node.name in to_run and len(users) > 1 and index in users:
            return node.name
    return index


async def deployment_on(pool: str) -> UUID:
    """The pipeline's deployment on a work pool."""
    if not os.environ.get("PREFECT_API_URL"):
        raise UsageError(f"the pool {pool} needs a Prefect server: set PREFECT_API_URL (docs/operations.md)")
    async with get_client() as client:
        found = await client.read_deployments(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW])),
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
            limit=1,
        )
    if not found:
        raise UsageError(
            f"the flow {FLOW} is not deployed on a pool {pool!r}; deploy it with: "
            "prefect --no-prompt deploy --all --prefect-file deployments/prefect.yaml"
        )
    return found[0].id
