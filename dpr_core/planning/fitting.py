"""The nearest settings with which a stage fits."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.launch import LaunchConfig
from dpr_core.planning.architecture import Architecture
from dpr_core.planning.memory import FULL
from dpr_core.planning.stages import Needs

FEWEST_LOGITS = 2**20
RECOMPUTING = 2
"""How far away computing activations again is, where one halving is 1."""

Changes = dict[str, Any]


@dataclass(frozen=True)
class Fit:
    """How a stage comes to fit."""

    changes: Changes | None
    """Fields of `execution`; empty where it fits as it is, None where no such change is enough."""
    least: float
    """Bytes with all that the settings can do."""


def nearest(
    needs_with: Callable[[ExecutionConfig], Needs], held: Callable[[Needs], float], start: ExecutionConfig, room: float
) -> Fit:
    """`held` says how many bytes of what is needed lie on one GPU."""
    least = math.inf
    start = start.model_copy(update={"tokens_per_micro_batch": start.tokens_at_once(on_gpu=True)})
    for changes in sorted(_changes(start, needs_with(start).longest), key=lambda each: _distance(start, each)):
        bytes_held = held(needs_with(start.model_copy(update=changes)))
        if bytes_held <= room:
            return Fit(changes, bytes_held)
        least = min(least, bytes_held)
    return Fit(None, least)


def on_each(architecture: Architecture, launch: LaunchConfig) -> Callable[[Needs], float]:
    """Bytes of a stage's fullest moment on each of the GPUs that share it."""
    way = {"ddp": _replicated, "fsdp": _sharded}[launch.strategy] if launch.processes > 1 else _alone
    return lambda needs: max(way(architecture, launch, needs, moment) for moment in needs.moments)


def _alone(architecture: Architecture, launch: LaunchConfig, needs: Needs, moment: str) -> float:
    return needs.moments[moment].total


def _replicated(architecture: Architecture, launch: LaunchConfig, needs: Needs, moment: str) -> float:
    """All of it on each, and the gradients a second time, in the buckets in which they are exchanged."""
    return needs.moments[moment].total + needs.moments[moment].gradients


def _sharded(architecture: Architecture, launch: LaunchConfig, needs: Needs, moment: str) -> float:
    """A slice of what lasts, or none of it, and what is gathered: to draw, whole networks; else two layers and all that
    is in no layer, and while learning the gradients of these and of one layer."""
    parts, a = needs.moments[moment], architecture
    slices = 0 if launch.cpu_offload else parts.lasting / launch.processes
    outside = a.parameters - a.layers * a.layer_matrices
    gathered = {
        "drawing": needs.drawing,
        "learning": FULL * (3 * a.layer_matrices + 2 * outside),
        "scoring": FULL * (2 * a.layer_matrices + outside),
    }[moment]
    return parts.total - parts.lasting + slices + gathered


def _changes(execution: ExecutionConfig, longest: int) -> Iterator[Changes]:
    lists: dict[str, list[Any]] = {
        "tokens_per_micro_batch": _halves(execution.tokens_at_once(on_gpu=True), longest),
        "rollout_rows": _halves(execution.rollout_rows, 1),
        "logits_per_chunk": _halves(execution.logits_per_chunk, FEWEST_LOGITS),
        "gradient_checkpointing": sorted({execution.gradient_checkpointing, True}),
    }
    for values in product(*lists.values()):
        chosen = dict(zip(lists, values, strict=True))
        yield {name: value for name, value in chosen.items() if value != getattr(execution, name)}


def _halves(most: int, least: int) -> list[int]:
    found = [most]
    while found[-1] // 2 >= least:
        found.append(found[-1] // 2)
    return found


def _distance(execution: ExecutionConfig, changes: Changes) -> float:
    distance = 0.0
    for name, value in changes.items():
        if name == "gradient_checkpointing":
            distance += RECOMPUTING
        else:
            distance += (getattr(execution, name) // value).bit_length() - 1
    return distance
