"""Early stopping of REINFORCE on KL or proxy over-optimisation (Goodhart), and roll-back to the best policy.

A guard reads label-free metrics of each rollout, and gives its verdict on the policy that was sampled. Each rule is
measured in `docs/guards.md`.
"""

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol

import torch

from dpr_core.config.reinforce import GuardConfig, KLStopConfig, WitnessStopConfig
from dpr_core.models.policy import Policy
from dpr_core.models.sharding import shard_like
from dpr_core.recorder import Recorder
from dpr_core.state import State


class GuardVerdict(NamedTuple):
    keep: bool
    """The policy is worth going back to."""
    stop: str | None = None
    """Why the run should end; None lets it go on."""


class Guard(Protocol):
    def watch(self, signals: Mapping[str, float]) -> GuardVerdict:
        """Call once an iteration, in order, with what the rollout showed of the policy before its update."""

    def state(self) -> State: ...

    def load_state(self, state: State) -> None: ...


class KLBound:
    """Keeps every policy within a bound on the KL to SFT, and stops at the first beyond it."""

    def __init__(self, settings: KLStopConfig) -> None:
        self.bound = settings.max_sequence_kl

    def watch(self, signals: Mapping[str, float]) -> GuardVerdict:
        kl = signals["rollout/kl"]
        if kl <= self.bound:
            return GuardVerdict(keep=True)
        return GuardVerdict(keep=False, stop=f"the KL to SFT, {kl:.2f}, passed the bound of {self.bound:g}")

    def state(self) -> State:
        return {}

    def load_state(self, state: State) -> None:
        pass


class MeanWithError(NamedTuple):
    """A mean and its standard error."""

    value: float
    error: float

    def below(self, other: "MeanWithError") -> float:
        """How far this is below the other, in standard errors of the difference."""
        return (other.value - self.value) / max(math.hypot(self.error, other.error), 1e-9)


class Witnesses:
    """Two measurements of the policy's responses that should rise or hold. The mean over the last iterations of each is
    held against the best such mean so far: clearly below it, the run ends. A policy is kept where neither is below its
    best, and only once the contrast is clearly above that of SFT, where the run began."""

    NAMES: Mapping[str, str] = {
        "log_sft": "how likely SFT finds the responses",
        "contrast": "how much more SFT likes the responses than the reference does",
    }

    def __init__(self, settings: WitnessStopConfig) -> None:
        self.settings = settings
        self._start: MeanWithError | None = None
        self._recent: dict[str, deque[MeanWithError]] = {name: deque(maxlen=settings.window) for name in self.NAMES}
        self._best: dict[str, MeanWithError] = {}

    def watch(self, signals: Mapping[str, float]) -> GuardVerdict:
        keep, stop = True, None
        for name, meaning in self.NAMES.items():
            now = MeanWithError(signals[f"rollout/{name}"], signals[f"rollout/{name}_error"])
            if not (math.isfinite(now.value) and math.isfinite(now.error)):
                return GuardVerdict(keep=False, stop=f"{meaning} is no longer a number")
            self._recent[name].append(now)
            lately = _mean(self._recent[name])
            best = self._best[name] = max(lately, self._best.get(name, lately))
            # An average lags behind a rise, and with it behind a fall that follows at once: single values count too.
            short = max(now.below(other) for other in (best, *self._recent[name]))
            keep = keep and short <= self.settings.keep_within
            if (fall := lately.below(best)) > self.settings.stop_beyond:
                change = f"from {best.value:.3f} to {lately.value:.3f}"
                stop = stop or f"{meaning} fell {change}, {fall:.1f} standard errors below its best"
        return GuardVerdict(keep and self._has_gained(), stop)

    def state(self) -> State:
        return {
            "start": self._start,
            "recent": {name: list(values) for name, values in self._recent.items()},
            "best": self._best,
        }

    def load_state(self, state: State) -> None:
        self._start = None if state["start"] is None else MeanWithError(*state["start"])
        self._best = {name: MeanWithError(*best) for name, best in state["best"].items()}
        for name, values in state["recent"].items():
            self._recent[name].extend(MeanWithError(*each) for each in values)

    def _has_gained(self) -> bool:
        lately = _mean(self._recent["contrast"])
        if self._start is None:
            self._start = lately
            return True
        return self._start.below(lately) > self.settings.gain_beyond


def _mean(values: Collection[MeanWithError]) -> MeanWithError:
    return MeanWithError(
        sum(each.value for each in values) / len(values), math.hypot(*(each.error for each in values)) / len(values)
    )


GUARDS: Mapping[type[GuardConfig], Callable[[Any], Guard]] = {KLStopConfig: KLBound, WitnessStopConfig: Witnesses}


class RollBack:
    """Carries out a guard's verdicts on a policy. It holds one copy of the weights: the newest worth going back to."""

    def __init__(self, settings: GuardConfig, policy: Policy) -> None:
        self.guard = GUARDS[type(settings)](settings)
        self.policy = policy
        self.iteration = self.kept_iteration = 1
        self.reason: str | None = None
        self._kept = {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}

    def watch(self, iteration: int, signals: Mapping[str, float]) -> bool:
        """True where this policy is kept. `reason` says afterwards why the run should end, if it should."""
        verdict = self.guard.watch(signals)
        self.iteration, self.reason = iteration, verdict.stop
        if verdict.keep:
            self.kept_iteration = iteration
            weights = dict(self.policy.named_parameters())
            self._copy(self._kept, {name: weights[name] for name in self._kept})
        return verdict.keep

    def finish(self, recorder: Recorder) -> dict[str, float]:
        """Go back to the kept policy, and report where the run stopped and what came out of it."""
        if self.kept_iteration == self.iteration and not self.reason:
            return {}
        self._copy(dict(self.policy.named_parameters()), self._kept)
        metrics: dict[str, float] = {"guard/kept_iteration": self.kept_iteration}
        if self.reason:
            metrics["guard/stopped_at_iteration"] = self.iteration
        recorder.table("guard.json", [{**metrics, "reason": self.reason or "the last policies were not worth keeping"}])
        return metrics

    def state(self) -> State:
        return {
            "guard": self.guard.state(),
            "iteration": self.iteration,
            "kept_iteration": self.kept_iteration,
            "kept": self._kept,
        }

    def load_state(self, state: State) -> None:
        self.guard.load_state(state["guard"])
        self.iteration, self.kept_iteration = state["iteration"], state["kept_iteration"]
        self._copy(self._kept, state["kept"])

    @staticmethod
    @torch.no_grad()
    def _copy(target: Mapping[str, torch.Tensor], source: Mapping[str, torch.Tensor]) -> None:
        for name, values in source.items():
            target[name].copy_(shard_like(values, target[name]))
