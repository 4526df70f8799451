"""The Prefect flows: a whole pipeline, a rerun of any artifact, a single stage. Stages exchange artifact IDs only."""

import logging
from typing import Any, assert_never

from pydantic import StrictBool

from dpr_core.config.pipeline import PipelineConfig
from dpr_core.redaction import redact_logs
from flows import recipes
from flows.dispatch import dispatch
from flows.orchestration import body, flow, run_flow
from flows.requests import Request, RerunRequest, RunRequest, StageRequest, SweepRequest
from flows.run_document import pipeline_run, stage_entry
from flows.sweep import run_request, sweep
from tasks.artifacts.store import Store
from tasks.graph import in_order, plan, preflight, resolved
from tasks.prefect_task import link_runs, stage_task
from tasks.run_stage import Outcome, StageJob

DEMO = recipes.load("demo")


@flow(name="dense-path", flow_run_name="{config.name}")
def dense_path(config: PipelineConfig = DEMO, force: StrictBool = False) -> dict[str, Any]:
    """Demonstrations -> SFT with checkpoints -> dense reward -> REINFORCE -> judged answers."""
    return run_graph(RunRequest(config=config, force=force))


@flow(name="rerun")
def rerun(
    artifact: str, overrides: list[str] | None = None, downstream: StrictBool = False, force: StrictBool = False
) -> dict[str, Any]:
    """Make one artifact again from its stored inputs, with `field=value` overrides; downstream: all built on it too."""
    target = Store.open().resolve(artifact)
    return run_graph(RerunRequest(artifact=target, overrides=overrides or [], downstream=downstream, force=force))


@flow(name="stage", flow_run_name="{request.stage}", validate_parameters=False)
def single_stage(request: StageRequest) -> dict[str, Any]:
    """A single stage, resumed as it was requested."""
    return run_graph(request)


def start(request: Request) -> dict[str, Any]:
    """Run a request as its Prefect flow."""
    match request:
        case RunRequest():
            return run_flow(lambda: dense_path(request.config, request.force), lambda: run_graph(request))
        case RerunRequest():
            arguments = request.artifact, request.overrides, request.downstream, request.force
            return run_flow(lambda: rerun(*arguments), lambda: run_graph(request))
        case StageRequest():
            return run_flow(lambda: single_stage(request), lambda: run_graph(request))
        case SweepRequest():
            settings = request.studies, request.name, request.jobs, request.pool
            return run_flow(lambda: sweep(*settings), lambda: run_request(request))
    assert_never(request)


@body
def run_graph(request: Request) -> dict[str, Any]:
    """Run every stage of a request under one parent run; returns the document that `dpr run --json` prints."""
    # A deployed flow shows on its page why each stage runs.
    logging.getLogger("dense_path").setLevel(logging.INFO)
    redact_logs()
    store = Store.open()
    dispatched = dispatch(request, store)
    nodes, info = dispatched.nodes, dispatched.info
    not_before = store.parent_runs.since(info.request) if request.force else None
    preflight(nodes, plan(nodes, store, not_before))
    outcomes: dict[str, Outcome] = {}
    with pipeline_run(store, info) as document:
        parent = document["run_id"]
        for node in in_order(nodes):
            inputs = resolved(node, outcomes)
            outcome = stage_task(StageJob(node.stage, node.name, node.config, inputs, parent, not_before, node.origin))
            outcomes[node.name] = outcome
            document["stages"].append(stage_entry(outcome))
    link_runs(store, document)
    return document
