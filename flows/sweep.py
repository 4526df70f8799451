"""Many pipelines as one run: every stage that several of them need is made once, and a table stands at the end."""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from prefect import flow

from dpr_core.errors import DensePathError
from dpr_core.experiments.points import Study
from flows import pool as pools
from flows.merging import Experiment
from flows.pipeline import show_links
from flows.requests import Sweep
from flows.run_document import pipeline_run, reused, stage_entry, tables_of
from tasks.artifacts.store import Store
from tasks.graph import Node, plan, preflight
from tasks.prefect_task import stage_task
from tasks.run_stage import Outcome
from tasks.running.shutdown import terminable
from tasks.schedule import Done, Failure, Here, execute_all
from tasks.subprocess_pool import Job, Workers, make

logger = logging.getLogger("dense_path")


class Incomplete(DensePathError):
    """Some points failed. The document says what became of all."""

    def __init__(self, document: dict[str, Any]) -> None:
        failed = document["failed"]
        lines = [f"  {name}: {why}" for name, why in failed.items()]
        kept = "everything else is made and kept; the same command goes on from there"
        super().__init__("\n".join([f"{len(failed)} failed; {kept}", *lines]))
        self.document = document


@flow(name="sweep", flow_run_name="{name}")
def sweep(studies: list[Study], name: str = "sweep", jobs: int = 1, pool: str | None = None) -> dict[str, Any]:
    """Run every point of the studies, here or over a pool of workers, and put their reports side by side."""
    return run_experiment(Experiment.of(studies), name, jobs, pool)


def run_experiment(
    asked: Experiment, name: str, jobs: int = 1, pool: str | None = None, send: pools.Submit = pools.submit
) -> dict[str, Any]:
    """The document that `dpr sweep --json` prints. Raises `Incomplete` at the end if a point failed."""
    logger.setLevel(logging.INFO)
    store = Store.open()
    stages = asked.merged.nodes
    planned = plan(stages, store)
    preflight(stages, planned, here=pool is None, jobs=jobs)
    there = reused(planned)
    logger.info("%s, %d of them there already", asked.description, len(there))
    about = Sweep(studies=asked.studies, name=name, jobs=jobs, pool=pool).about(store)
    total = len(asked.tables()) + (0 if pool else len(stages) - len(there))
    with (
        pipeline_run(store, about, tables_of) as document,
        terminable(),
        _maker(document, total, jobs) as all_of,
    ):
        if pool is None:
            document["stages"] += map(stage_entry, there.values())
            done = all_of(stages, Done(there))
        else:
            problems = pools.run_points(asked, planned, name, pool, send)
            done = _found(asked, reused(plan(stages, store)), problems)
            document["stages"] += map(stage_entry, done.outcomes.values())
        there_now = [node for node in stages if node.name in done.outcomes]
        done = all_of([*there_now, *asked.tables(done.failures)], done)
        if failed := asked.failed(done.failures):
            document["failed"] = failed
    show_links(store, document)
    if failed:
        raise Incomplete(document)
    return document


def _found(asked: Experiment, there: Mapping[str, Outcome], problems: Mapping[str, str]) -> Done:
    """What a pool has made, as far as this store knows."""
    done = Done(dict(there))
    elsewhere = "its flow run ended well, but its report is not in this store: workers need the same store as this"
    for name, report in asked.reports.items():
        if report not in there:
            done.failures[report] = Failure(report, DensePathError(problems.get(name, elsewhere)))
    return done


AllOf = Callable[[Sequence[Node], Done], Done]


@contextmanager
def _maker(document: dict[str, Any], total: int, jobs: int) -> Iterator[AllOf]:
    """Makes what is not done of a graph, here or in `jobs` other processes, and writes down what came of each stage."""
    numbers = itertools.count(1)
    by: Callable[[Job], Outcome] = make
    executor: Executor = Here()

    def run(node: Node, inputs: dict[str, str]) -> Outcome:
        outcome: Outcome = stage_task(node.stage, node.name, node.config, inputs, document["run_id"], by=by)
        document["stages"].append(stage_entry(outcome))
        told = f"{node.name} {outcome.status} in {outcome.seconds:.0f} s"
        logger.info("stage %d of %d: %s", next(numbers), total, told)
        return outcome

    def failed(failure: Failure) -> None:
        logger.warning("%s failed, and what is built on it is left out: %s", failure.node, failure.error)

    def all_of(nodes: Sequence[Node], before: Done) -> Done:
        return execute_all(nodes, run, before, executor, jobs, failed)

    if jobs == 1:
        yield all_of
        return
    # The processes end first, so that no thread waits for one.
    with ThreadPoolExecutor(jobs) as threads, Workers() as workers:
        executor, by = threads, workers.make
        yield all_of
