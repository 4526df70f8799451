"""Search for the nearest execution settings with which a stage fits into a GPU, on one process or several."""

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
CHECKPOINTING_DISTANCE = 2
"""Cost of turning gradient checkpointing on, where one halving of a number costs 1."""

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


def bytes_per_gpu(architecture: Architecture, launch: LaunchConfig) -> Callable[[StageEstimate], float]:
    """The peak bytes of a stage on each of the GPUs that share it."""
    layout = {"ddp": _replicated, "fsdp": _sharded}[launch.strategy] if launch.processes > 1 else _alone
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
    slices = 0 if launch.cpu_offload else parts.lasting / launch.processes
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
            distance += (getattr(execution, name) // value).bit_length() - 1
    return distance
