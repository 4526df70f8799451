"""The nearest settings with which a stage fits."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from dpr_core.config.execution import Execution
from dpr_core.planning.memory import FULL, Memory
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
    needs_with: Callable[[Execution], Needs], held: Callable[[Needs], float], start: Execution, room: float
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


def on_one(needs: Needs) -> float:
    """As the stages run: everything on one GPU."""
    return needs.peak.total


def sharded(memory: Memory, gpus: int) -> Callable[[Needs], float]:
    """What lasts is shared among so many GPUs, each of which gathers two layers, the embedding and the head at a time,
    and the whole model where it draws."""
    a = memory.architecture
    gathered = FULL * (2 * a.layer_matrices + a.head * (1 if a.tied else 2))

    def on_each(needs: Needs) -> float:
        return max(
            parts.total - parts.lasting * (1 - 1 / gpus) + (memory.frozen if parts.cache else gathered)
            for parts in needs.moments.values()
        )

    return on_one if gpus == 1 else on_each


def _changes(execution: Execution, longest: int) -> Iterator[Changes]:
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


def _distance(execution: Execution, changes: Changes) -> float:
    distance = 0.0
    for name, value in changes.items():
        if name == "gradient_checkpointing":
            distance += RECOMPUTING
        else:
            distance += (getattr(execution, name) // value).bit_length() - 1
    return distance
