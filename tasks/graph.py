"""The dependency graph of a pipeline: topological order, a plan from cached artifacts, and reruns of stored ones."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Literal, NamedTuple

from dpr_core.config.base import StageConfig, override, parse
from dpr_core.config.execution import ExecutionConfig
from dpr_core.errors import DensePathError, UsageError
from tasks.artifacts.identity import canonical_json, stage_key
from tasks.artifacts.run_records import Record, Snapshot, usable_as, wrong_stage
from tasks.artifacts.store import Store
from tasks.lengths import Made, check_lengths
from tasks.registry import stage_named
from tasks.run_stage import Outcome, check_launch, recent, reusable, unchanged_since
from tasks.running.explain_rerun import FORCED, NEVER, UNEXPLAINED, RequestedStage, differences

OTHER = "@"


@dataclass(frozen=True)
class Node:
    """One stage of a graph. An input is an artifact ID, or `@name` of another node."""

    name: str
    stage: str
    config: StageConfig
    inputs: dict[str, str]
    origin: str | None = None
    """The artifact that this node makes again, if it does."""


@dataclass(frozen=True)
class Planned:
    """Whether a node would run or be reused, and why."""

    name: str
    stage: str
    status: Literal["reuse", "run"]
    id: str | None
    why: str
    results: dict[str, float] = field(default_factory=dict)
    """The final metrics of the artifact that is reused."""


def plan(
    nodes: Sequence[Node], store: Store, not_before: datetime | None = None, pipeline: str | None = None
) -> list[Planned]:
    """Say what would run and why, and what would be reused: nothing begun before `not_before`. Runs nothing.

    The reasons compare with what pipelines of this name have made.
    """
    ordered = in_order(nodes)
    by_name = {node.name: node for node in ordered}
    stored = store.snapshot()
    planned: dict[str, Planned] = {}
    for node in ordered:
        given = _inputs(node, by_name, planned, store, stored)
        planned[node.name] = _plan_node(node, given, stored, not_before, pipeline)
    return list(planned.values())


def preflight(nodes: Sequence[Node], planned: Sequence[Planned], elsewhere: Collection[str] = ()) -> None:
    """Raise now what would make a stage fail that is still to run on this machine, so many at once. The nodes that are
    done elsewhere are checked there: what they need, another machine may have."""
    for check in _checks(nodes, planned, elsewhere, planning=False):
        check()


def obstacles(nodes: Sequence[Node], planned: Sequence[Planned], elsewhere: Collection[str] = ()) -> list[str]:
    """All that `preflight` would raise, as far as it can be known for nothing."""
    found = []
    for check in _checks(nodes, planned, elsewhere, planning=True):
        try:
            check()
        except DensePathError as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def _checks(
    every: Sequence[Node], planned: Sequence[Planned], elsewhere: Collection[str], planning: bool
) -> Iterator[Callable[[], None]]:
    by_name = {OTHER + node.name: node for node in every}

    def made(source: str) -> Made | None:
        node = by_name.get(source)
        return None if node is None else Made(node.stage, node.config.model_dump(mode="json"), node.inputs)

    for node in _to_run(every, planned):
        yield partial(check_lengths, node.stage, node.config, node.inputs, made)
    for node in _to_run(every, planned):
        if node.name in elsewhere:
            yield partial(_refuse_budget, node)
    nodes = [node for node in every if node.name not in elsewhere]
    configs: dict[str, list[StageConfig]] = {}
    for node in _to_run(nodes, planned):
        yield partial(check_launch, stage_named(node.stage), node.config)
        configs.setdefault(node.stage, []).append(node.config)
    for stage, of_stage in configs.items():
        yield partial(stage_named(stage).preflight, of_stage, planning)
    if any(each.device == "cuda" for each in _executions(nodes, planned)):
        from dpr_core.training.torch_runtime import refuse_without_gpu

        yield refuse_without_gpu


def _refuse_budget(node: Node) -> None:
    """Another machine has a home, and so a ledger, of its own: two caps are twice the money."""
    if getattr(getattr(node.config, "execution", None), "budget_dollars", None) is not None:
        raise UsageError(
            f"{node.name}: {node.stage}.execution.budget_dollars holds for the ledger of this DPR_HOME, and another "
            f"machine keeps its own; do {node.stage} here (--place {node.stage}=here), or set no budget"
        )


def computes(nodes: Sequence[Node], planned: Sequence[Planned]) -> bool:
    """Whether what is still to run needs torch."""
    return bool(_executions(nodes, planned))


def _executions(nodes: Sequence[Node], planned: Sequence[Planned]) -> list[ExecutionConfig]:
    found = (getattr(node.config, "execution", None) for node in _to_run(nodes, planned))
    return [each for each in found if isinstance(each, ExecutionConfig)]


def _to_run(nodes: Sequence[Node], planned: Sequence[Planned]) -> list[Node]:
    names = {step.name for step in planned if step.status == "run"}
    return [node for node in nodes if node.name in names]


class Input(NamedTuple):
    digest: str | None
    """None where it is yet to be made."""
    config: Mapping[str, Any]


def _inputs(
    node: Node, by_name: Mapping[str, Node], planned: Mapping[str, Planned], store: Store, stored: Snapshot
) -> dict[str, Input]:
    """Check each input as a run would, short of re-hashing."""
    stage = stage_named(node.stage)
    stage.check_roles(node.inputs)
    given: dict[str, Input] = {}
    for role, source in node.inputs.items():
        maker = by_name[source.removeprefix(OTHER)] if source.startswith(OTHER) else None
        artifact = source if maker is None else planned[maker.name].id
        record = None if artifact is None else stored.record(artifact) or store.record(artifact)
        if record is not None:
            problem = usable_as(record, stage.accepted(role))
        else:
            assert maker is not None
            problem = wrong_stage(source, maker.stage, stage.accepted(role))
        if problem:
            raise UsageError(f"input {role} of {node.name}: {problem}")
        if record is not None:
            given[role] = Input(record.digest, record.config)
        elif maker is not None:
            given[role] = Input(None, maker.config.model_dump(mode="json"))
    return given


def _plan_node(
    node: Node,
    given: Mapping[str, Input],
    stored: Snapshot,
    not_before: datetime | None,
    pipeline: str | None,
) -> Planned:
    stage = stage_named(node.stage)
    if missing := stage.missing(node.config):
        return Planned(node.name, node.stage, "run", None, missing)
    config = stage.settle(stage.pin(node.config), {role: each.config for role, each in given.items()})
    known = {role: each.digest for role, each in given.items() if each.digest is not None}
    damage: list[str] = []
    if len(known) == len(given):
        key = stage_key(stage.name, stage.version_of(config), config.identity(), known)
        found, damage = reusable(recent(stored.finished(key), not_before), stored.problems)
        if found is not None:
            return Planned(node.name, node.stage, "reuse", found.id, unchanged_since(found), found.results)
    if not_before is not None:
        return Planned(node.name, node.stage, "run", None, "; ".join(damage) or FORCED)
    requested = RequestedStage(node.name, stage.name, stage.version_of(config), config, known, frozenset(given))
    origin = stored.record(node.origin) if node.origin else None
    same = [*stored.named(stage.name, node.name, pipeline), *([origin] if origin else [])]
    reasons = damage or differences(requested, same, stored.digests, node.origin)
    if reasons != [NEVER]:
        reasons = reasons + [
            f"its input {role} ({node.inputs[role].removeprefix(OTHER)}) runs again"
            for role in given
            if role not in known
        ]
    return Planned(node.name, node.stage, "run", None, "; ".join(reasons) or UNEXPLAINED)


def rerun_nodes(store: Store, run_id: str, overrides: Iterable[str], downstream: bool) -> list[Node]:
    """The nodes that make an artifact again with some settings changed and, with `downstream`, all built on it."""
    target = store.record(run_id)
    finished = [record for record in store.records() if record.finished] if downstream else []
    again = {target.id: target} | _built_on(target, finished)
    digest_of = {record.id: record.digest for record in finished}
    # Several machines, or --force, may have made the same: what is built on one of them is built on all.
    twin = {record.digest: record.id for record in reversed(again.values()) if record.digest}

    def made_again(source: str) -> str | None:
        return source if source in again else twin.get(digest_of.get(source))

    nodes: dict[str, Node] = {}
    name_of: dict[str, str] = {}
    node_of: dict[str, str] = {}

    def add(record: Record, users: tuple[str, ...] = ()) -> None:
        if record.id in users:
            raise DensePathError(f"the stored lineage of {record.title} goes in a circle")
        if record.id in name_of:
            return
        for source in map(made_again, record.inputs.values()):
            if source is not None:
                add(again[source], (*users, record.id))
        if wrong := store.contradictions(record.id):
            raise DensePathError(
                f"{record.title} cannot be made again as the store describes it: {'; '.join(wrong)}; "
                "give its settings to `dpr run` instead"
            )
        config = _stored_config(record, overrides if record.id == target.id else ())
        inputs = {
            role: source if (other := made_again(source)) is None else OTHER + name_of[other]
            for role, source in record.inputs.items()
        }
        same_input = {role: digest_of.get(source) or source for role, source in inputs.items()}
        signature = canonical_json([record.stage, config.identity(), same_input])
        if signature not in node_of:
            name = record.name if record.name not in nodes else f"{record.name}-{record.id[:8]}"
            nodes[name] = Node(name, record.stage, config, inputs, origin=record.id)
            node_of[signature] = name
        name_of[record.id] = node_of[signature]

    for record in again.values():
        add(record)
    return list(nodes.values())


def _built_on(target: Record, finished: Sequence[Record]) -> dict[str, Record]:
    """All finished artifacts that have `target`, or one of the same digest, somewhere below them, newest first."""
    reached = {target.id} | {record.id for record in finished if target.digest and record.digest == target.digest}
    twins = frozenset(reached)
    while more := {r.id for r in finished if r.id not in reached and reached & set(r.inputs.values())}:
        reached |= more
    return {record.id: record for record in finished if record.id in reached - twins}


def _stored_config(record: Record, overrides: Iterable[str]) -> StageConfig:
    stage = stage_named(record.stage)
    return parse(stage.config, override(record.config, overrides), record.stage)


def sources(node: Node) -> list[str]:
    """The other nodes that this one needs."""
    return [source.removeprefix(OTHER) for source in node.inputs.values() if source.startswith(OTHER)]


def resolved(node: Node, outcomes: Mapping[str, Outcome]) -> dict[str, str]:
    """The artifact ID of every input, now that what it needs is there."""
    return {
        role: outcomes[source.removeprefix(OTHER)].id if source.startswith(OTHER) else source
        for role, source in node.inputs.items()
    }


def in_order(nodes: Sequence[Node]) -> list[Node]:
    """Topological order: each node after those that it builds on, otherwise as given."""
    by_name = {node.name: node for node in nodes}
    if len(by_name) != len(nodes):
        raise UsageError("two stages of this pipeline have the same name")
    ordered: dict[str, Node] = {}

    def visit(node: Node, users: tuple[str, ...] = ()) -> None:
        if node.name in users:
            raise UsageError(f"{node.name} would have to be built on itself")
        if node.name in ordered:
            return
        for role, source in node.inputs.items():
            if source.startswith(OTHER):
                name = source.removeprefix(OTHER)
                if name not in by_name:
                    raise UsageError(f"input {role} of {node.name}: there is no stage called {name}")
                visit(by_name[name], (*users, node.name))
        ordered[node.name] = node

    for node in nodes:
        visit(node)
    return list(ordered.values())
