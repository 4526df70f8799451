"""A vLLM server that a stage starts on its own GPU: what it is given there, and what it needs of that."""

import math
from dataclasses import dataclass

from dpr_core.config.rollouts import Rollouts, VllmConfig
from dpr_core.planning.memory import FULL, HALF, Memory


@dataclass(frozen=True)
class VllmServerShare:
    """It takes its share of the GPU whatever it needs, and keeps keys and values in what its weights leave of it."""

    share: float
    weights: float
    """Bytes of all weights, in the type of the activations."""
    row: float
    """Bytes of the keys and values of one longest response and its prompt."""
    rows: int
    """Responses that it is asked for at once."""

    @property
    def least(self) -> float:
        """Bytes without which it does not start."""
        return self.weights + self.row

    def taken(self, gpu: float) -> float:
        """Bytes of a GPU that has so many."""
        return self.share * gpu

    def fits(self, gpu: float) -> bool:
        return self.least <= self.taken(gpu)

    def least_share(self, gpu: float) -> float:
        """In hundredths."""
        return math.ceil(100 * self.least / gpu) / 100

    def drawn_at_once(self, gpu: float) -> int:
        """Of the longest responses; the others wait for their turn."""
        return max(0, min(self.rows, math.floor((self.taken(gpu) - self.weights) / self.row)))

    def as_dict(self, gpu: float) -> dict[str, float | int | bool]:
        return {
            "memory_share": self.share,
            "bytes": round(self.taken(gpu)),
            "weights": round(self.weights),
            "cache": round(self.row * self.rows),
            "least_bytes": round(self.least),
            "rows_at_once": self.drawn_at_once(gpu),
            "fits": self.fits(gpu),
        }


def server_for(rollouts: Rollouts, memory: Memory) -> VllmServerShare | None:
    """None where none is started: one that is named by its address is elsewhere."""
    if not isinstance(rollouts, VllmConfig) or rollouts.execution.url is not None:
        return None
    number = HALF if memory.dtype == "bfloat16" else FULL
    known = memory.architecture
    row = 2 * number * known.remembered(memory.longest)
    return VllmServerShare(
        rollouts.execution.memory_share, number * known.parameters, row, memory.execution.rollout_rows
    )
