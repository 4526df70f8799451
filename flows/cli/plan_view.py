"""View of a resource plan: the memory of every stage by part, its work, and settings that would make it fit."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from dpr_core.planning.hours import Gpu
from dpr_core.planning.memory import PARTS
from dpr_core.reporting.tables import NONE, Table
from flows.cli.costs_view import views
from flows.planning import RunPlan, StagePlan

GIGA = 2**30


def plan_view(plan: RunPlan) -> RenderableType:
    target = plan.target
    shared = any(stage.launch.count > 1 for stage in plan.stages)
    served = any(stage.needs.server for stage in plan.stages)
    more = [*(["processes", "on each GPU"] if shared else []), *(["vLLM server"] if served else [])]
    memory = Table(
        ("stage", "fullest while", *PARTS, "in all", *more, "fits"),
        [_memory_row(stage, shared, served, target.gpu) for stage in plan.stages],
        texts=2,
    )
    work = Table(
        ("stage", "tokens", "operations", "time"),
        [
            *(
                [
                    each.name,
                    _number(each.needs.work.tokens),
                    _number(each.needs.work.operations),
                    _time(each.hours, target.span),
                ]
                for each in plan.stages
            ),
            ["in all", "", "", _time(plan.hours, target.span)],
        ],
    )
    room = f"{_gib(target.gpu.usable)} of {target.gpu.gigabytes:g}"
    return Group(
        memory.as_terminal(f"GiB for {target.gpu.name}, of which {room} can be used on each"),
        *(Text(f"{each.name}: {advice(each, plan)}") for each in plan.stages if not each.fits),
        *(Text(f"{each.name}: {_faster(each, plan)}") for each in plan.stages if each.faster),
        work.as_terminal(f"Work, for {plan.architecture.parameters / 1e9:.2f} billion parameters"),
        *views(plan.costs),
        *map(Text, plan.assumed),
    )


def advice(stage: StagePlan, plan: RunPlan) -> str:
    """The nearest settings with which a stage fits, or why there are none."""
    return "; ".join(filter(None, (_of_server(stage, plan), _of_batches(stage, plan))))


def _faster(stage: StagePlan, plan: RunPlan) -> str:
    """The nearest settings that fit and are about as fast as any."""
    faster, span = stage.faster, plan.target.span
    if faster is None:
        return ""
    text = f"{_time(faster.hours, span)} with {_settings(stage, (stage.nearest.changes or {}) | faster.changes)}"
    return f"faster, {text}, in place of {_time(stage.hours, span)}" if stage.fits else f"fits, and is fastest, {text}"


def _of_server(stage: StagePlan, plan: RunPlan) -> str:
    """Empty where it has all that it needs."""
    server, gpu = stage.needs.server, plan.target.gpu
    if server is None or server.fits(gpu.memory):
        return ""
    text = f"its vLLM server needs {_gib(server.least)} GiB for weights and one response"
    if (share := server.least_share(gpu.memory)) >= 1:
        return f"{text}, which no share of this GPU is"
    setting = _in_changes(stage, f"reinforce.rollouts.execution.memory_share={share:.2f}")
    return f"{text} and is given {_gib(server.taken(gpu.memory))}; it would fit with {setting}"


def _of_batches(stage: StagePlan, plan: RunPlan) -> str:
    """Empty where they fit as they are."""
    if stage.nearest.changes == {}:
        return ""
    if stage.nearest.changes:
        return f"does not fit; it would with {_settings(stage, stage.nearest.changes)}"
    server = stage.needs.server
    least = f"{server.least_share(plan.target.gpu.memory):.2f}" if server else ""
    beside = f" beside its vLLM server, which needs a memory_share of {least} at least" if server else ""
    text = (
        f"does not fit: with the smallest batches it still needs {_gib(stage.nearest.least)} GiB, of which "
        f"{_gib(max(0.0, stage.room))} can be used{beside}"
    )
    if plan.gpus == 1 or (stage.launch.strategy == "fsdp" and stage.launch.count > 1):
        return text
    if stage.sharded.changes is None:
        return f"{text}; with slices on {plan.gpus} GPUs, {_gib(stage.sharded.least)} GiB on each"
    settings = " ".join(filter(None, (_sliced(plan.gpus), _settings(stage, stage.sharded.changes))))
    return f"{text}; with slices on {plan.gpus} GPUs it would fit: {settings}"


def _sliced(gpus: int) -> str:
    return f"launch.processes={gpus} launch.strategy=fsdp"


def _settings(stage: StagePlan, changes: Mapping[str, Any]) -> str:
    """As `--set` takes them, or as a variant lists its changes."""
    own = stage.stage in ("self_play", "continued_sft")
    section = f"methods.{stage.name}" if own else stage.stage
    text = " ".join(f"{section}.execution.{name}={str(value).lower()}" for name, value in changes.items())
    return _in_changes(stage, text)


def _in_changes(stage: StagePlan, text: str) -> str:
    variant = stage.stage in ("reward", "reinforce") and stage.name != stage.stage
    return f"{text} (in the changes of that method)" if variant else text


def _memory_row(stage: StagePlan, shared: bool, served: bool, gpu: Gpu) -> list[str]:
    parts = stage.needs.peak.as_dict()
    cells = [_gib(parts[name]) if parts[name] else NONE for name in PARTS]
    on_each = [str(stage.launch.count), _gib(stage.on_each)] if shared else []
    in_all, server = _gib(stage.needs.peak.total), stage.needs.server
    taken = [_gib(server.taken(gpu.memory)) if server else NONE] if served else []
    return [stage.name, stage.needs.fullest, *cells, in_all, *on_each, *taken, "yes" if stage.fits else "no"]


def _gib(size: float) -> str:
    found = size / GIGA
    return f"{found:.1f}" if found >= 0.1 else f"{found:.1g}"


def _number(value: float) -> str:
    for size, word in NUMBERS:
        if value >= size:
            return f"{value / size:.1f} {word}"
    return f"{value:,.0f}"


NUMBERS = tuple(
    (1000.0**power, word)
    for power, word in ((6, "quintillion"), (5, "quadrillion"), (4, "trillion"), (3, "billion"), (2, "million"))
)
TIMES = ((240.0, 24.0, "days"), (2.0, 1.0, "hours"), (1 / 30, 1 / 60, "minutes"), (0.0, 1 / 3600, "seconds"))
"""From how many hours on, the unit in hours, and its name."""


def _time(hours: float, span: tuple[float, float]) -> str:
    """A range in one unit, or one number where both ends are the same in it."""
    least, most = (hours * times for times in span)
    unit, name = next((unit, name) for start, unit, name in TIMES if most >= start)
    ends = list(dict.fromkeys(_figure(each / unit) for each in (least, most)))
    return f"{' to '.join(ends)} {name}"


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 0.1 else "0"
