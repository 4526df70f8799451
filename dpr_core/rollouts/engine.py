"""The Engine Protocol: prompt ids in, response ids and the engine's own log-probs out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dpr_core.state import State, pack, unpack

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters."""

    temperature: float
    max_response_tokens: int
    end_token: int
    """The token that ends a response; it is part of the response."""


@dataclass(frozen=True)
class Completion:
    """A sampled response."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    log_probs: tuple[float, ...]
    """log pi of each response token at the temperature that drew it (1 for greedy), as the engine computed it."""

    @property
    def length(self) -> int:
        return len(self.response)

    def ended(self, end_token: int) -> bool:
        """Whether it has an end token; False where the length limit cut it."""
        return self.response[-1] == end_token


class Engine(Protocol):
    """Returns one completion per prompt, in the order of the prompts, deterministic in the seed.

    Sampling is resumable: `drawn` maps rows to completions of an interrupted call, which are not sampled again; new
    ones are added to it, and `on_progress(done, total)` is called when its state is worth a checkpoint.
    """

    def generate(
        self,
        prompts: Sequence[tuple[int, ...]],
        sampling: Sampling,
        seed: int,
        on_progress: OnProgress | None = None,
        drawn: dict[int, Completion] | None = None,
    ) -> list[Completion]: ...


class UpdatableEngine(Engine, Protocol):
    """An engine that samples from a policy in training."""

    version: int
    """Optimizer step of the weights that sampled the last result of `generate`."""

    def update_weights(self, step: int) -> None:
        """Sample from the policy's current weights, those after `step` optimizer steps."""


def log_probs(completions: Sequence[Completion]) -> Tensor:
    """(B, T) log-probs as the engine computed them; 0 outside the responses."""
    width = max(c.length for c in completions)
    return torch.tensor([[*c.log_probs, *[0.0] * (width - c.length)] for c in completions])


def completions_state(drawn: Mapping[int, Completion]) -> State:
    """The resumable state of completions by row."""
    completions = drawn.values()
    return {
        "rows": torch.tensor(list(drawn), dtype=torch.int64),
        "prompts": pack(c.prompt for c in completions),
        "responses": pack(c.response for c in completions),
        "log_probs": pack((c.log_probs for c in completions), torch.float64),
    }


def completions_from_state(state: State) -> dict[int, Completion]:
    """The completions of a `completions_state`."""
    parts = zip(*(unpack(state[name]) for name in ("prompts", "responses", "log_probs")), strict=True)
    return dict(zip(state["rows"].tolist(), (Completion(*part) for part in parts), strict=True))


class ScriptedEngine:
    """An engine with fixed responses, for tests."""

    def __init__(self, responses: Mapping[tuple[int, ...], tuple[int, ...]], log_prob: float = -1.0) -> None:
        self.responses = responses
        self.log_prob = log_prob
        self.version = 0

    def update_weights(self, step: int) -> None:
        self.version = step

    def generate(
        self,
        prompts: Sequence[tuple[int, ...]],
        sampling: Sampling,
        seed: int,
        on_progress: OnProgress | None = None,
        drawn: dict[int, Completion] | None = None,
    ) -> list[Completion]:
        completions = {} if drawn is None else drawn
        for row, prompt in enumerate(prompts):
            response = self.responses[prompt][: sampling.max_response_tokens]
            completions.setdefault(row, Completion(prompt, response, (self.log_prob,) * len(response)))
        return [completions[row] for row in range(len(prompts))]
