"""The Prefect flows: a whole pipeline, a rerun, a sweep, a single stage. Stages exchange artifact IDs only."""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from threading import Semaphore
from typing import Any, assert_never

from prefect.runtime import flow_run
from pydantic import StrictBool

from dpr_core.config.base import Line
from dpr_core.config.evaluation import ChatCompletionsConfig
from dpr_core.config.pipeline import PipelineConfig
from dpr_core.config.placing import Rules
from dpr_core.redaction import redact_logs
from flows import recipes
from flows.dispatch import dispatch, places_of, tags_of
from flows.keys import fetch_keys
from flows.merging import MergedStudies
from flows.orchestration import body, flow, run_flow
from flows.requests import ImportRequest, Jobs, Request, RerunRequest, RunRequest, StageRequest, Studies, SweepRequest
from flows.run_document import IncompleteError, pipeline_run, reused, stage_entry
from tasks.artifacts.retrying import LeaseLostError, UnansweredError
from tasks.artifacts.store import Store
from tasks.graph import Node, Planned, in_order, plan, preflight
from tasks.local_home import is_full
from tasks.placement import WorkPools, own_pool
from tasks.prefect_task import link_runs, stage_task, tag_run
from tasks.run_job import run_job
from tasks.run_stage import Outcome, StageJob
from tasks.running.shutdown import graceful_shutdown
from tasks.schedule import MOST_BESIDE, Done, Failure, Here, execute_all
from tasks.subprocess_pool import SubprocessPool, gpus

logger = logging.getLogger("dense_path")

MOST_JUDGES = 8
"""Judges of this machine that wait for their endpoints at once, each a process."""

DEMO = recipes.load("demo")


@flow(name="dense-path", flow_run_name="{config.name}")
def dense_path(
    config: PipelineConfig = DEMO,
    force: StrictBool = False,
    jobs: Jobs = 1,
    place: Rules = {},  # noqa: B006
) -> dict[str, Any]:
    """Demonstrations -> SFT with checkpoints -> dense reward -> REINFORCE -> judged answers."""
    return run_graph(RunRequest(config=config, force=force, jobs=jobs, place=place))


def _rerun_name() -> str:
    given = flow_run.parameters
    return " ".join(["rerun", given["artifact"].removeprefix("runs:/")[:8], *(given.get("overrides") or [])])


@flow(name="rerun", flow_run_name=_rerun_name, description="An artifact again, with changes, and what was built on it.")
def rerun(
    artifact: str,
    overrides: list[str] | None = None,
    downstream: StrictBool = False,
    force: StrictBool = False,
    jobs: Jobs = 1,
    place: Rules = {},  # noqa: B006
) -> dict[str, Any]:
    """Make one artifact again from its stored inputs.

    Args:
        artifact: Its ID, or the first characters of that, as `runs:/12345678`.
        overrides: Changes to its settings, such as ["algorithm.gamma=0.95"]: fields of its stage, values as in YAML.
        downstream: Make everything that was built on it again too.
        force: Make it again, though nothing has changed.
        jobs: Stages that are computed here at once, each by a process of its own, with a GPU of its own.
        place: Where stages are done, by name or `*` for the others, such as {"reinforce": "gpu8", "*": "gpu"}: a work
            pool, one of its queues as pool/queue, or `here`.
    """
    target = Store.open().resolve(artifact)
    changes = overrides or []
    return run_graph(
        RerunRequest(artifact=target, overrides=changes, downstream=downstream, force=force, jobs=jobs, place=place)
    )


@flow(name="sweep", flow_run_name="{name}", description="Many pipelines as one, and a table of all at the end.")
def sweep(
    studies: Studies,
    name: Line = "sweep",
    jobs: Jobs = 1,
    place: Rules = {},  # noqa: B006
) -> dict[str, Any]:
    """Run every point of the studies, each stage that is the same once, and put their reports side by side.

    Args:
        studies: What is swept: recipes written out, each with a title and the values of some of its fields.
        name: What the sweep is called in MLflow.
        jobs: Stages that are computed here at once, each by a process of its own, with a GPU of its own.
        place: Where stages are done, by name or `*` for the others, such as {"reinforce": "gpu8", "*": "gpu"}: a work
            pool, one of its queues as pool/queue, or `here`; on top of the recipes' own.
    """
    return run_graph(SweepRequest(studies=studies, name=name, jobs=jobs, place=place))


@flow(name="stage", flow_run_name="{request.stage}", validate_parameters=False)
def single_stage(request: StageRequest) -> dict[str, Any]:
    """A single stage, resumed as it was requested."""
    return run_graph(request)


@flow(name="import", flow_run_name="{request.name}", validate_parameters=False)
def import_checkpoints(request: ImportRequest) -> dict[str, Any]:
    """An SFT artifact of checkpoints that were trained elsewhere."""
    return run_graph(request)


def start(request: Request) -> dict[str, Any]:
    """Run a request as its Prefect flow."""
    how: dict[str, Any] = {"jobs": request.jobs, "place": request.place}

    def as_flow() -> dict[str, Any]:
        match request:
            case RunRequest():
                return dense_path(request.config, request.force, **how)
            case RerunRequest():
                return rerun(request.artifact, request.overrides, request.downstream, request.force, **how)
            case StageRequest():
                return single_stage(request)
            case ImportRequest():
                return import_checkpoints(request)
            case SweepRequest():
                return sweep(request.studies, request.name, **how)
        assert_never(request)

    return run_flow(as_flow, lambda: run_graph(request))


@body
def run_graph(request: Request) -> dict[str, Any]:
    """Run every stage of a request under one parent run; returns the document that `dpr run --json` prints. Raises
    `IncompleteError` at the end if several stages failed, or a point of a sweep."""
    # A deployed flow shows on its page why each stage runs.
    logger.setLevel(logging.INFO)
    redact_logs()
    store = Store.open()
    dispatched = dispatch(request, store)
    nodes, studies, info = dispatched.nodes, dispatched.studies, dispatched.info
    not_before = store.parent_runs.since(info.request) if request.force else None
    planned = plan(nodes, store, not_before)
    places = places_of(nodes, planned, request.places, own_pool())
    to_run = {step.name for step in planned if step.status == "run"} - places.keys()
    fetch_keys(node.config for node in nodes if node.name in to_run)
    preflight(nodes, planned, places)
    pools = WorkPools(store)
    pools.check(places.values())
    tag_run(tags_of(request, nodes))
    with (
        pipeline_run(store, info, dispatched.results_of) as document,
        graceful_shutdown(),
        _Runner(document, planned, not_before, request.jobs).open(pools, places) as runner,
    ):
        if studies is None:
            failed = runner.pipeline(nodes)
        else:
            failed = runner.sweep(studies, len(nodes))
        if failed:
            document["failed"] = failed
    link_runs(store, document)
    if failed:
        raise IncompleteError(document)
    return document


class _Runner:
    """Runs the nodes of a graph, each where it is to be done, and adds what comes of them to the document."""

    def __init__(
        self, document: dict[str, Any], planned: Sequence[Planned], not_before: datetime | None, jobs: int
    ) -> None:
        self._document = document
        self._found = reused(planned)
        self._not_before = not_before
        self._jobs = jobs
        self._judging = Semaphore(MOST_JUDGES)
        self._numbers = itertools.count(1)
        self._total = 0
        """Of the stages that are told of one by one."""

    @contextmanager
    def open(self, pools: WorkPools, places: Mapping[str, str]) -> Iterator["_Runner"]:
        """Where all is done here, one after another, this process does it; else processes that divide the GPUs, and
        this one stays light. So does it where a judge is waited for while others compute."""
        self._pools, self._places = pools, places
        self._split = bool(places) or self._jobs > 1
        # Processes and flow runs end first, so that no thread waits for one; a worker gives a controller that is
        # cancelled half a minute, which its own processes may need.
        with (
            ThreadPoolExecutor(MOST_BESIDE + self._jobs) as self._threads,
            pools,
            SubprocessPool(self._jobs, gpus() if self._split else ()) as self._processes,
        ):
            try:
                yield self
            finally:
                pools.cancel()

    def pipeline(self, nodes: Sequence[Node]) -> dict[str, str]:
        """Why some stages failed; one error alone is raised."""
        self._total = len(nodes) if self._split else 0
        done = self._run(nodes, Done())
        place = {node.name: number for number, node in enumerate(in_order(nodes))}
        self._document["stages"].sort(key=lambda entry: place[entry["name"]])
        causes = {failure.node: failure.error for failure in done.failures.values()}
        if len(set(map(str, causes.values()))) == 1:
            raise next(iter(causes.values()))
        return {name: str(error) for name, error in causes.items()}

    def sweep(self, studies: MergedStudies, total: int) -> dict[str, str]:
        """Why some points failed."""
        nodes, found = studies.graph.nodes, self._found
        self._total = total - len(found)
        logger.info("%s, %d of them there already", studies.description, len(found))
        self._document["stages"] += map(stage_entry, found.values())
        done = self._run(nodes, Done(dict(found)))
        finished = [node for node in nodes if node.name in done.outcomes]
        done = self._run([*finished, *studies.tables(done.failures)], done)
        return studies.failed(done.failures)

    def _run(self, nodes: Sequence[Node], before: Done) -> Done:
        def on_failure(failure: Failure) -> None:
            if isinstance(failure.error, UnansweredError | LeaseLostError) or is_full(failure.error):
                raise failure.error  # every other stage would end so
            if len(nodes) > 1:
                logger.warning("%s failed, and what is built on it is left out: %s", failure.node, failure.error)

        executor: Executor = self._threads if self._split else Here()
        waits, beside = self._waits, self._threads
        return execute_all(
            nodes, self._do, before, executor, self._jobs, waits=waits, beside=beside, on_failure=on_failure
        )

    def _waits(self, node: Node) -> bool:
        """For a pool, or for a judge's endpoint."""
        if node.name in self._found:
            return False
        return node.name in self._places or isinstance(getattr(node.config, "by", None), ChatCompletionsConfig)

    def _do(self, node: Node, inputs: dict[str, str], aside: bool) -> Outcome:
        parent = self._document["run_id"]
        job = StageJob(node.stage, node.name, node.config, inputs, parent, self._not_before, node.origin)
        outcome = stage_task(job, self._how(node, aside))
        self._document["stages"].append(stage_entry(outcome))
        if self._total:
            told = f"stage {next(self._numbers)} of {self._total}"
            logger.info("%s: %s %s in %.0f s", told, node.name, outcome.status, outcome.seconds)
        return outcome

    def _how(self, node: Node, aside: bool) -> Callable[[StageJob], Outcome]:
        if (found := self._found.get(node.name)) is not None:
            return lambda job: found
        if node.name in self._places:
            return partial(self._pools.run, place=self._places[node.name])
        if aside:
            return self._judge_beside
        return self._processes.run if self._split else run_job

    def _judge_beside(self, job: StageJob) -> Outcome:
        with self._judging:
            return self._processes.run(job)
