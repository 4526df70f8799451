"""What every rollout engine does: prompt ids in, response ids and the engine's own log-probs out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dpr_core.state import State, pack, unpack

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
    """An engine returns one completion a prompt, in the order of the prompts, and the same ones for the same seed.

    What `drawn` holds already, by the row of its prompt, is not drawn again. What is drawn goes into it, and from
    time to time, where what is there is worth keeping, `on_progress` is told how many of how many are there.
    """

    def generate(
        self,
        prompts: Sequence[tuple[int, ...]],
        sampling: Sampling,
        seed: int,
        on_progress: Progress | None = None,
        drawn: dict[int, Completion] | None = None,
    ) -> list[Completion]: ...


class FollowingEngine(Engine, Protocol):
    """One that draws with a policy which learns meanwhile."""

    version: int
    """Optimizer steps behind the policy that drew what `generate` returned last."""

    def refresh(self, version: int) -> None:
        """The policy has changed: what is drawn from now on comes from it as it is now, after so many steps."""


def log_probs(completions: Sequence[Completion]) -> Tensor:
    """(B, T): the engine's own; 0 outside the responses."""
    width = max(c.length for c in completions)
    return torch.tensor([[*c.log_probs, *[0.0] * (width - c.length)] for c in completions])


def drawn_state(drawn: Mapping[int, Completion]) -> State:
    """Completions by row, to be kept."""
    completions = drawn.values()
    return {
        "rows": torch.tensor(list(drawn), dtype=torch.int64),
        "prompts": pack(c.prompt for c in completions),
        "responses": pack(c.response for c in completions),
        "log_probs": pack((c.log_probs for c in completions), torch.float64),
    }


def drawn_from(state: State) -> dict[int, Completion]:
    """What `drawn_state` kept."""
    parts = zip(*(unpack(state[name]) for name in ("prompts", "responses", "log_probs")), strict=True)
    return dict(zip(state["rows"].tolist(), (Completion(*part) for part in parts), strict=True))


class ScriptedEngine:
    def __init__(self, responses: Mapping[tuple[int, ...], tuple[int, ...]], log_prob: float = -1.0) -> None:
        self.responses = responses
        self.log_prob = log_prob
        self.version = 0

    def refresh(self, version: int) -> None:
        self.version = version

    def generate(
        self,
        prompts: Sequence[tuple[int, ...]],
        sampling: Sampling,
        seed: int,
        on_progress: Progress | None = None,
        drawn: dict[int, Completion] | None = None,
    ) -> list[Completion]:
        completions = {} if drawn is None else drawn
        for row, prompt in enumerate(prompts):
            response = self.responses[prompt][: sampling.max_response_tokens]
            completions.setdefault(row, Completion(prompt, response, (self.log_prob,) * len(response)))
        return [completions[row] for row in range(len(prompts))]
