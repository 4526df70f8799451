"""Dispatch of requests: the nodes of each kind, and what its parent run shows. Knows no Prefect."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from dpr_core.config.base import parse
from dpr_core.config.placing import HERE, place_of
from flows import wiring
from flows.merging import MergedStudies
from flows.requests import Request, RerunRequest, RunRequest, StageRequest, SweepRequest
from flows.run_document import Results, report_of, tables_of
from tasks.artifacts.parent_runs import PipelineInfo
from tasks.artifacts.store import Store
from tasks.graph import Node, Planned, rerun_nodes
from tasks.registry import stage_named


@dataclass(frozen=True)
class Dispatched:
    """What a request comes to."""

    nodes: list[Node]
    info: PipelineInfo
    results_of: Results = report_of
    studies: MergedStudies | None = None
    """Of a sweep."""


def dispatch(request: Request, store: Store) -> Dispatched:
    """The one place where the kinds of requests differ; `flows.pipeline.start` has the Prefect flow of each."""
    match request:
        case RunRequest(config=config):
            info = PipelineInfo(
                config.name, config.description, config.model_dump(mode="json", exclude={"place"}), request.stored()
            )
            return Dispatched(wiring.nodes(config), info)
        case RerunRequest(artifact=artifact, overrides=overrides, downstream=downstream):
            target = store.record(artifact)
            changes = f" with {', '.join(overrides)}" if overrides else ""
            settings = request.model_dump(mode="json", include={"artifact", "overrides", "downstream"})
            info = PipelineInfo(f"rerun {target.stage}", f"{target.title} again{changes}.", settings, request.stored())
            return Dispatched(rerun_nodes(store, artifact, overrides, downstream), info)
        case StageRequest(stage=stage, config=values, inputs=inputs):
            node = Node(stage, stage, parse(stage_named(stage).config, values, stage), inputs)
            return Dispatched([node], PipelineInfo(stage, f"{stage} alone.", values, request.stored()))
        case SweepRequest():
            return dispatch_sweep(request, MergedStudies.of(request.studies))
    assert_never(request)


def dispatch_sweep(request: SweepRequest, studies: MergedStudies) -> Dispatched:
    """As `dispatch`, for studies that are merged already."""
    info = PipelineInfo(request.name, studies.description, studies.settings, request.stored())
    return Dispatched([*studies.graph.nodes, *studies.tables()], info, tables_of, studies)


def places_of(
    nodes: Sequence[Node], planned: Sequence[Planned], rules: Mapping[str, str], own: str | None = None
) -> dict[str, str]:
    """The work pools of what is still to run, by the names of nodes; what is done here is not among them."""
    to_run = {step.name for step in planned if step.status == "run"}
    places = {node.name: place_of(rules, node.stage) for node in nodes if node.name in to_run}
    # A pool with one slot would wait for itself for ever: what is placed on one's own is done here.
    return {name: place for name, place in places.items() if place.partition("/")[0] not in (HERE, own)}


def tags_of(request: Request, nodes: Sequence[Node]) -> set[str]:
    """What flow runs are looked for by: recipes and their presets, or stages, and seeds."""
    tags = {f"seed:{node.config.seed}" for node in nodes}
    match request:
        case RunRequest(config=config):
            configs = [config]
        case SweepRequest(studies=studies):
            configs = [study.config for study in studies]
        case RerunRequest(artifact=artifact):
            return tags | {f"stage:{node.stage}" for node in nodes if node.origin == artifact}
        case StageRequest(stage=stage):
            return tags | {f"stage:{stage}"}
    presets = {method.preset for config in configs for method in config.methods.values() if hasattr(method, "preset")}
    return tags | {f"recipe:{config.name}" for config in configs} | {f"preset:{name}" for name in presets if name}
