"""A plan for people: the memory of every stage by part, its work, and what would make it fit."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from dpr_core.planning.memory import PARTS
from dpr_core.reporting.tables import NONE, Table
from flows.planning import RunPlan, StagePlan
from flows.show_costs import views

GIGA = 2**30


def plan_view(plan: RunPlan) -> RenderableType:
    asked = plan.asked
    shared = any(stage.launch.processes > 1 for stage in plan.stages)
    memory = Table(
        ("stage", "fullest while", *PARTS, "in all", *(["processes", "on each GPU"] if shared else []), "fits"),
        [_memory_row(stage, shared) for stage in plan.stages],
        texts=2,
    )
    work = Table(
        ("stage", "tokens", "operations", "hours"),
        [
            *(
                [each.name, _number(each.needs.work.tokens), _number(each.needs.work.operations), _hours(each.hours)]
                for each in plan.stages
            ),
            ["in all", "", "", _hours(sum(each.hours for each in plan.stages))],
        ],
    )
    room = f"{_gib(asked.gpu.usable)} of {asked.gpu.gigabytes:g}"
    return Group(
        memory.as_terminal(f"GiB for {asked.gpu.name}, of which {room} can be used on each"),
        *(Text(f"{each.name}: {advice(each, plan)}") for each in plan.stages if not each.fits),
        work.as_terminal(f"Work, for {plan.architecture.parameters / 1e9:.2f} billion parameters"),
        *views(plan.costs),
        *map(Text, plan.assumed),
    )


def advice(stage: StagePlan, plan: RunPlan) -> str:
    """The nearest settings with which a stage fits, or why there are none."""
    if stage.nearest.changes:
        return f"does not fit; it would with {_settings(stage, stage.nearest.changes)}"
    told = (
        f"does not fit: with the smallest batches it still needs {_gib(stage.nearest.least)} GiB, of which "
        f"{_gib(plan.asked.gpu.usable)} can be used"
    )
    if plan.gpus == 1 or (stage.launch.strategy == "fsdp" and stage.launch.processes > 1):
        return told
    if stage.sharded.changes is None:
        return f"{told}; with slices on {plan.gpus} GPUs, {_gib(stage.sharded.least)} GiB on each"
    settings = " ".join(filter(None, (_sliced(plan.gpus), _settings(stage, stage.sharded.changes))))
    return f"{told}; with slices on {plan.gpus} GPUs it would fit: {settings}"


def _sliced(gpus: int) -> str:
    return f"launch.processes={gpus} launch.strategy=fsdp"


def _settings(stage: StagePlan, changes: Mapping[str, Any]) -> str:
    """As `--set` takes them, or as a variant lists its changes."""
    own = stage.stage in ("self_play", "continued_sft")
    section = f"methods.{stage.name}" if own else stage.stage
    told = " ".join(f"{section}.execution.{name}={str(value).lower()}" for name, value in changes.items())
    variant = stage.stage in ("reward", "reinforce") and stage.name != stage.stage
    return f"{told} (in the changes of that method)" if variant else told


def _memory_row(stage: StagePlan, shared: bool) -> list[str]:
    parts = stage.needs.peak.as_dict()
    cells = [_gib(parts[name]) if parts[name] else NONE for name in PARTS]
    on_each = [str(stage.launch.processes), _gib(stage.on_each)] if shared else []
    in_all = _gib(stage.needs.peak.total)
    return [stage.name, stage.needs.fullest, *cells, in_all, *on_each, "yes" if stage.fits else "no"]


def _gib(size: float) -> str:
    found = size / GIGA
    return f"{found:.1f}" if found >= 0.1 else f"{found:.1g}"


def _number(value: float) -> str:
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f}"


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 0.05 else f"{hours:.1g}"
