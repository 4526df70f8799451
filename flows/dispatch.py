"""Dispatch of requests: the nodes of each kind, and what its parent run shows. Knows no Prefect."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from dpr_core.config.base import parse
from dpr_core.config.placing import HERE, place_of
from dpr_core.errors import UsageError
from dpr_core.experiments.points import label, short_names
from flows import wiring
from flows.merging import MergedStudies
from flows.requests import ImportRequest, Request, RerunRequest, RunRequest, StageRequest, SweepRequest
from flows.run_document import Results, report_of, tables_of
from tasks.artifacts.parent_runs import PipelineInfo
from tasks.artifacts.store import Store
from tasks.graph import OTHER, Node, Planned, rerun_nodes
from tasks.registry import stage_named

OF_ONE_ANSWER = {("answer", "benchmark"), ("answer", "policy")}
"""Settings in which the stages differ that have one section of a recipe in common."""


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
            nodes = rerun_nodes(store, artifact, overrides, downstream)
            asked = request.model_dump(mode="json", include={"artifact", "overrides", "downstream"})
            values = dict(each.split("=", 1) for each in overrides)
            changed, short = ", ".join(overrides), label(values, short_names(values))
            info = PipelineInfo(
                f"rerun {target.stage}",
                f"{target.title} again with {changed}." if changed else f"{target.title} again.",
                asked | effective(store, nodes),
                request.stored(),
                changed=changed,
                label=short,
                run_name=f"{target.name} {short}" if short else "",
            )
            return Dispatched(nodes, info)
        case StageRequest(stage=stage, config=settings, inputs=inputs):
            nodes = [Node(stage, stage, parse(stage_named(stage).config, settings, stage), inputs)]
            info = PipelineInfo(stage, f"{stage} alone.", effective(store, nodes), request.stored())
            return Dispatched(nodes, info)
        case ImportRequest(name=name, subsample=subsample, sft=sft):
            nodes = [Node("subsample", "subsample", subsample, {}), Node("sft", "sft", sft, {"data": "@subsample"})]
            described = "Checkpoints that were trained elsewhere."
            return Dispatched(nodes, PipelineInfo(name, described, effective(store, nodes), request.stored()))
        case SweepRequest():
            return dispatch_sweep(request, MergedStudies.of(request.studies))
    assert_never(request)


def dispatch_sweep(request: SweepRequest, studies: MergedStudies) -> Dispatched:
    """As `dispatch`, for studies that are merged already."""
    info = PipelineInfo(
        request.name,
        studies.description,
        studies.settings,
        request.stored(),
        changed=", ".join(f"{field}={','.join(map(str, values))}" for field, values in studies.over.items()),
        run_name=f"{request.name} {label(studies.over, short_names(studies.over))}",
    )
    return Dispatched([*studies.graph.nodes, *studies.tables()], info, tables_of, studies)


def effective(store: Store, nodes: Sequence[Node]) -> dict[str, Any]:
    """The settings of nodes and of all that is below them, under the names that a recipe has for them."""
    found: dict[str, Any] = {}
    below = [source for node in nodes for source in node.inputs.values() if not source.startswith(OTHER)]
    for node in nodes:
        _add(found, node.stage, node.name, node.config.model_dump(mode="json"))
    seen: set[str] = set()
    while below:
        if (source := below.pop(0)) not in seen:
            seen.add(source)
            try:
                record = store.record(source)
            except UsageError:
                continue  # it was removed; what was built on it is there
            _add(found, record.stage, record.name, record.config)
            below += record.inputs.values()
    return found


def _add(found: dict[str, Any], stage: str, name: str, config: Mapping[str, Any]) -> None:
    if stage == "experiment":
        return
    values = {field: value for field, value in config.items() if (stage, field) not in OF_ONE_ANSWER}
    if stage == "sft" and (backbone := values.pop("backbone", None)):
        found.setdefault("backbone", backbone)
    found.setdefault(stage if name.startswith(stage) else f"methods.{name}", values)


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
        case ImportRequest():
            return tags | {"stage:sft"}
    presets = {method.preset for config in configs for method in config.methods.values() if hasattr(method, "preset")}
    return tags | {f"recipe:{config.name}" for config in configs} | {f"preset:{name}" for name in presets if name}
