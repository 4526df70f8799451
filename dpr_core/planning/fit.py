"""Search for the nearest execution settings with which a stage fits into a GPU, on one process or several, and for the
nearest that fit and are faster."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from dpr_core.config.execution import ExecutionConfig, LaunchConfig
from dpr_core.planning.architecture import Architecture
from dpr_core.planning.memory import FULL
from dpr_core.planning.stages import StageEstimate

MIN_LOGITS_PER_CHUNK = 2**20
MOST_ROWS, MOST_LOGITS = 2**16, 2**34
"""The most that the settings allow."""
CHECKPOINTING_DISTANCE = 2
"""Cost of turning gradient checkpointing on or off, where one halving of a number costs 1."""

MOST_DOUBLINGS = 5
"""Of the rows of a rollout: beyond, reading the weights is no longer what a rollout waits for."""
GAIN = 0.05
"""Share of the hours that is worth a change of settings; what is slower by less counts as fast."""

Changes = dict[str, Any]


@dataclass(frozen=True)
class Fit:
    """The result of a search."""

    changes: Changes | None
    """Fields of `execution` to change; empty where the stage fits as it is, None where no change is enough."""
    least: float
    """The fewest bytes over all settings."""


def nearest_fit(
    estimate_with: Callable[[ExecutionConfig], StageEstimate],
    bytes_of: Callable[[StageEstimate], float],
    start: ExecutionConfig,
    room: float,
) -> Fit:
    """The changes of `start` nearest to it with which `bytes_of` the estimate is at most `room`."""
    least = math.inf
    start = start.model_copy(update={"tokens_per_micro_batch": start.tokens_at_once(on_gpu=True)})
    for changes in sorted(_changes(start, estimate_with(start).longest), key=lambda each: _distance(start, each)):
        needed = bytes_of(estimate_with(start.model_copy(update=changes)))
        if needed <= room:
            return Fit(changes, needed)
        least = min(least, needed)
    return Fit(None, least)


@dataclass(frozen=True)
class Faster:
    """Settings that fit and save time."""

    changes: Changes
    hours: float


def nearest_faster(
    estimate_with: Callable[[ExecutionConfig], StageEstimate],
    bytes_of: Callable[[StageEstimate], float],
    hours_of: Callable[[ExecutionConfig], float],
    start: ExecutionConfig,
    room: float,
) -> Faster | None:
    """Of the changes of `start`, which fits, the nearest that is about as fast as any that fits; None where none saves
    much."""
    start = start.model_copy(update={"tokens_per_micro_batch": start.tokens_at_once(on_gpu=True)})
    now = hours_of(start)
    found: list[Faster] = []
    for changes in _speed_ups(start, lambda alone: hours_of(start.model_copy(update=alone)) < now):
        changed = start.model_copy(update=changes)
        hours = hours_of(changed)
        if hours < (1 - GAIN) * now and bytes_of(estimate_with(changed)) <= room:
            found.append(Faster(changes, hours))
    fast = [each for each in found if each.hours <= (1 + GAIN) * min(other.hours for other in found)]
    return min(fast, key=lambda each: (_distance(start, each.changes), each.hours), default=None)


def _speed_ups(execution: ExecutionConfig, helps: Callable[[Changes], bool]) -> Iterator[Changes]:
    """More rows at once, logits in fewer chunks, no activations computed again, of these what helps by itself; smaller
    micro-batches make room."""
    batch = execution.tokens_at_once(on_gpu=True)
    lists: dict[str, list[Any]] = {
        "tokens_per_micro_batch": [batch // 2**i for i in range(3) if batch >= 2**i],
        "rollout_rows": [min(execution.rollout_rows * 2**i, MOST_ROWS) for i in range(MOST_DOUBLINGS + 1)],
        "logits_per_chunk": [min(execution.logits_per_chunk * 2**i, MOST_LOGITS) for i in range(3)],
        "gradient_checkpointing": [execution.gradient_checkpointing, False],
    }
    for name, tried in lists.items():
        if name != "tokens_per_micro_batch" and not helps({name: tried[-1]}):
            lists[name] = tried[:1]
    for values in product(*lists.values()):
        yield {n: v for n, v in zip(lists, values, strict=True) if v != getattr(execution, n)}


def bytes_per_gpu(architecture: Architecture, launch: LaunchConfig) -> Callable[[StageEstimate], float]:
    """The peak bytes of a stage on each of the GPUs that share it."""
    layout = {"ddp": _replicated, "fsdp": _sharded}[launch.strategy] if launch.count > 1 else _alone
    return lambda estimate: max(layout(architecture, launch, estimate, moment) for moment in estimate.moments)


def _alone(architecture: Architecture, launch: LaunchConfig, estimate: StageEstimate, moment: str) -> float:
    return estimate.moments[moment].total


def _replicated(architecture: Architecture, launch: LaunchConfig, estimate: StageEstimate, moment: str) -> float:
    """DDP: everything on each GPU, and the gradients twice, since DDP's buckets copy them."""
    return estimate.moments[moment].total + estimate.moments[moment].gradients


def _sharded(architecture: Architecture, launch: LaunchConfig, estimate: StageEstimate, moment: str) -> float:
    """FSDP: a shard of the lasting parts (none with CPU offload), and what is gathered: whole networks to decode; else
    two layers and all that is outside of layers, with their gradients in training."""
    parts, a = estimate.moments[moment], architecture
    slices = 0 if launch.cpu_offload else parts.lasting / launch.count
    outside = a.parameters - a.layers * a.layer_matrices
    gathered = {
        "drawing": estimate.drawing,
        "learning": FULL * (3 * a.layer_matrices + 2 * outside),
        "scoring": FULL * (2 * a.layer_matrices + outside),
    }[moment]
    return parts.total - parts.lasting + slices + gathered


def _changes(execution: ExecutionConfig, longest: int) -> Iterator[Changes]:
    lists: dict[str, list[Any]] = {
        "tokens_per_micro_batch": _halves(execution.tokens_at_once(on_gpu=True), longest),
        "rollout_rows": _halves(execution.rollout_rows, 1),
        "logits_per_chunk": _halves(execution.logits_per_chunk, MIN_LOGITS_PER_CHUNK),
        "gradient_checkpointing": sorted({execution.gradient_checkpointing, True}),
    }
    for values in product(*lists.values()):
        chosen = dict(zip(lists, values, strict=True))
        yield {name: value for name, value in chosen.items() if value != getattr(execution, name)}


def _halves(most: int, least: int) -> list[int]:
    values = [most]
    while values[-1] // 2 >= least:
        values.append(values[-1] // 2)
    return values


def _distance(execution: ExecutionConfig, changes: Changes) -> float:
    distance = 0.0
    for name, value in changes.items():
        if name == "gradient_checkpointing":
            distance += CHECKPOINTING_DISTANCE
        else:
            distance += abs(math.log2(getattr(execution, name) / value))
    return distance
