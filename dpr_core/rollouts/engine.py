"""What every rollout engine does: prompt ids in, response ids and the engine's own log-probs out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Sampling:
    temperature: float
    max_response_tokens: int
    end_token: int
    """The token that ends a response; it is part of the response."""


@dataclass(frozen=True)
class Completion:
    prompt: tuple[int, ...]
    response: tuple[int, ...]
    log_probs: tuple[float, ...]
    """log pi at temperature 1 for each response token, as the engine saw it, whatever temperature it sampled at."""

    @property
    def length(self) -> int:
        return len(self.response)

    def ended(self, end_token: int) -> bool:
        """False where the length limit cut it."""
        return self.response[-1] == end_token


class Engine(Protocol):
    """An engine returns one completion a prompt, in the order of the prompts, and the same ones for the same seed."""

    def generate(
        self, prompts: Sequence[tuple[int, ...]], sampling: Sampling, seed: int, on_progress: Progress | None = None
    ) -> list[Completion]: ...
