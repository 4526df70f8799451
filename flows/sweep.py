"""The Prefect flow of a sweep: many pipelines as one graph of shared stages, and a table at the end."""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from dpr_core.config.base import Line
from dpr_core.errors import DensePathError
from dpr_core.redaction import redact_logs
from flows import pool as work_pool
from flows.dispatch import dispatch_sweep
from flows.merging import MergedStudies
from flows.orchestration import body, flow
from flows.requests import Jobs, Studies, SweepRequest
from flows.run_document import IncompleteError, pipeline_run, reused, stage_entry, tables_of
from tasks.artifacts.store import Store
from tasks.graph import Node, plan, preflight
from tasks.prefect_task import link_runs, stage_task
from tasks.run_stage import Outcome, StageJob, run_job
from tasks.running.shutdown import graceful_shutdown
from tasks.schedule import Done, Failure, Here, execute_all
from tasks.subprocess_pool import SubprocessPool

logger = logging.getLogger("dense_path")


@flow(name="sweep", flow_run_name="{name}")
def sweep(studies: Studies, name: Line = "sweep", jobs: Jobs = 1, pool: str | None = None) -> dict[str, Any]:
    """Run every point of the studies, here or over a pool of workers, and put their reports side by side."""
    return run_request(SweepRequest(studies=studies, name=name, jobs=jobs, pool=pool))


@body
def run_request(request: SweepRequest) -> dict[str, Any]:
    """A sweep as it was asked for."""
    return run_sweep(MergedStudies.of(request.studies), request.name, request.jobs, request.pool)


def run_sweep(
    studies: MergedStudies, name: str, jobs: int = 1, pool: str | None = None, send: work_pool.Submit = work_pool.submit
) -> dict[str, Any]:
    """The document that `dpr sweep --json` prints. Raises `IncompleteError` at the end if a point failed."""
    logger.setLevel(logging.INFO)
    redact_logs()
    store = Store.open()
    stages = studies.graph.nodes
    planned = plan(stages, store)
    preflight(stages, planned, here=pool is None, jobs=jobs)
    cached = reused(planned)
    logger.info("%s, %d of them there already", studies.description, len(cached))
    request = SweepRequest(studies=studies.studies, name=name, jobs=jobs, pool=pool)
    total = len(studies.tables()) + (0 if pool else len(stages) - len(cached))
    with (
        pipeline_run(store, dispatch_sweep(request, studies).info, tables_of) as document,
        graceful_shutdown(),
        _executor(document, total, jobs) as run_all,
    ):
        if pool is None:
            document["stages"] += map(stage_entry, cached.values())
            done = run_all(stages, Done(cached))
        else:
            problems = work_pool.run_points(studies, planned, name, pool, send)
            done = _found_after(studies, reused(plan(stages, store)), problems)
            document["stages"] += map(stage_entry, done.outcomes.values())
        finished = [node for node in stages if node.name in done.outcomes]
        done = run_all([*finished, *studies.tables(done.failures)], done)
        if failed := studies.failed(done.failures):
            document["failed"] = failed
    link_runs(store, document)
    if failed:
        raise IncompleteError(document)
    return document


def _found_after(studies: MergedStudies, found: Mapping[str, Outcome], problems: Mapping[str, str]) -> Done:
    """What a work pool has made, as far as this store shows."""
    done = Done(dict(found))
    elsewhere = "its flow run ended well, but its report is not in this store: workers need the same store as this"
    for name, report in studies.reports.items():
        if report not in found:
            done.failures[report] = Failure(report, DensePathError(problems.get(name, elsewhere)))
    return done


RunAll = Callable[[Sequence[Node], Done], Done]


@contextmanager
def _executor(document: dict[str, Any], total: int, jobs: int) -> Iterator[RunAll]:
    """Runs what is not done of a graph, here or in `jobs` other processes, and adds each stage to the document."""
    numbers = itertools.count(1)
    run_one: Callable[[StageJob], Outcome] = run_job
    executor: Executor = Here()

    def run(node: Node, inputs: dict[str, str]) -> Outcome:
        job = StageJob(node.stage, node.name, node.config, inputs, document["run_id"])
        outcome = stage_task(job, run_one)
        document["stages"].append(stage_entry(outcome))
        logger.info("stage %d of %d: %s %s in %.0f s", next(numbers), total, node.name, outcome.status, outcome.seconds)
        return outcome

    def on_failure(failure: Failure) -> None:
        logger.warning("%s failed, and what is built on it is left out: %s", failure.node, failure.error)

    def run_all(nodes: Sequence[Node], before: Done) -> Done:
        return execute_all(nodes, run, before, executor, jobs, on_failure)

    if jobs == 1:
        yield run_all
        return
    # The processes end first, so that no thread waits for one.
    with ThreadPoolExecutor(jobs) as threads, SubprocessPool(jobs) as processes:
        executor, run_one = threads, processes.run
        yield run_all
