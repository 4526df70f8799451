"""Hooks of the REINFORCE loop, called between its four steps: metrics, off-policy correction, critic, kept policies,
guard, samples, progress, overlap and resume. The loop calls them in the order in which it lists them, and at the end in
the reverse.
"""

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from dpr_core import distributed
from dpr_core.advantages import explained_variance
from dpr_core.algorithms.base import Advantages, CriticObjective
from dpr_core.algorithms.kl_control import KLControl
from dpr_core.config.reinforce import ReinforceConfig, extrapolation
from dpr_core.config.rollouts import VllmConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.errors import DensePathError
from dpr_core.importance import importance, mismatch
from dpr_core.masking import masked_mean
from dpr_core.models.critic import Critic
from dpr_core.models.dense_reward import TokenReward
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score_values
from dpr_core.recorder import Recorder
from dpr_core.rollouts.engine import log_probs
from dpr_core.rollouts.overlap import OverlappedEngine
from dpr_core.state import State
from dpr_core.training.guard import RollBack
from dpr_core.training.rollout import Rollout, describe, samples
from dpr_core.training.schedule import RolloutRequest
from dpr_core.training.trainer import Trainer

logger = logging.getLogger("dense_path")

SAMPLE_TABLES = 20
"""About as many tables of samples are kept of a run, however long it is."""

KEPT_FILE = "rollout.json"
"""Beside the weights of a policy that was kept: what its rollout showed."""
KEPT_METRICS = ("rollout/kl", "rollout/entropy", "rollout/return", "rollout/length")


@dataclass
class Iteration:
    """One iteration of the loop, as far as it has come."""

    number: int
    total: int
    """Iterations with an update; one more rollout follows, which measures the policy that comes out."""
    step: int
    """Optimizer steps of the iterations before."""
    rollout: Rollout
    advantages: Advantages
    kl_weight: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)


class Hook:
    """The protocol of all hooks; by default nothing happens."""

    def after_credit(self, iteration: Iteration) -> None:
        """Change the advantages or add metrics, before the metrics are recorded."""

    def before_update(self, iteration: Iteration) -> bool:
        """True ends the run here: hooks further down the list are not called, and nothing is updated."""
        return False

    def finish(self, metrics: dict[str, float]) -> dict[str, float]:
        """The metrics that the run returns, from those of the last whole iteration."""
        return metrics

    def state(self) -> State:
        return {}

    def load_state(self, state: State) -> None:
        """Go on where `state` was taken."""


@dataclass
class RolloutMetrics(Hook):
    end_token: int
    kl: KLControl
    reward: TokenReward

    def after_credit(self, iteration: Iteration) -> None:
        iteration.metrics |= describe(iteration.rollout, iteration.advantages, self.end_token)
        iteration.metrics["rollout/kl_weight"] = self.kl.weight
        if self.kl.weight and self.reward.formula == "baseline_relative":
            # What is paid is Eq. 5 over its scale; for Eq. 5 itself beta counts so much more.
            beta, taught = self.kl.weight * self.reward.scale, self.reward.teacher is not None
            iteration.metrics["rollout/lambda"] = extrapolation(beta, taught)


class RewardDrift(Hook):
    """How far the mean reward is from that of the first rollout."""

    first: float | None = None

    def after_credit(self, iteration: Iteration) -> None:
        reward = iteration.metrics["rollout/reward"]
        self.first = reward if self.first is None else self.first
        iteration.metrics["rollout/reward_drift"] = reward - self.first

    def state(self) -> State:
        return {"first": self.first}

    def load_state(self, state: State) -> None:
        self.first = state["first"]


@dataclass
class TruncatedImportance(Hook):
    """Truncated importance sampling, where another engine than the policy itself has drawn the responses."""

    settings: VllmConfig

    def after_credit(self, iteration: Iteration) -> None:
        advantages, metrics = corrected(iteration.advantages.advantages, iteration.rollout, self.settings)
        iteration.advantages = iteration.advantages._replace(advantages=advantages)
        iteration.metrics |= metrics


def corrected(advantages: Tensor, rollout: Rollout, settings: VllmConfig) -> tuple[Tensor, dict[str, float]]:
    """A_t min(pi_trainer / pi_engine, C), with no gradient through the weight; and how far the two are apart."""
    mask, ours, theirs = rollout.scored.mask, rollout.old_log_probs, log_probs(rollout.completions)
    ratios = importance(ours, theirs, mask, settings.importance_per)
    weights = ratios.clamp(max=settings.importance_cap)
    metrics = {
        "policy_version": float(rollout.version),
        "engine_mismatch_kl": mismatch(ours, theirs, mask),
        "importance_mean": float(masked_mean(weights, mask)),
        "importance_truncated_share": float(masked_mean((ratios > settings.importance_cap).float(), mask)),
    }
    return advantages * weights, {f"rollout/{name}": value for name, value in metrics.items()}


class CriticLearner(Hook):
    """The value function of a method that needs one, which starts from the policy's body. Everything but the learning
    rate is set as for the policy."""

    def __init__(
        self,
        objective: CriticObjective,
        policy: Policy,
        config: ReinforceConfig,
        total_steps: int,
        recorder: Recorder | None = None,
    ) -> None:
        self.objective = objective
        self.critic = Critic(policy)
        settings = config.model_copy(update={"learning_rate": objective.learning_rate})
        self.trainer = Trainer(self.critic, settings, total_steps, config.execution, "critic", recorder)

    def values(self, sequences: Sequence[TokenSequence]) -> Tensor:
        """(B, T), before the update."""
        return score_values(self.critic, sequences, self.trainer.execution.tokens_per_micro_batch)

    def after_credit(self, iteration: Iteration) -> None:
        batch, returns = iteration.rollout.batch, iteration.advantages.returns
        iteration.metrics["critic/explained_variance"] = explained_variance(batch.values, returns, batch.mask)

    def state(self) -> State:
        return self.trainer.state()

    def load_state(self, state: State) -> None:
        self.trainer.load_state(state)


@dataclass
class KeepAtKL(Hook):
    """Saves the policy the first time that its KL to SFT reaches each value, also where a guard stops the run there."""

    values: Sequence[float]
    save: Callable[[Path], None]
    folder: Path
    kept: dict[str, tuple[int, dict[str, float]]] = field(default_factory=dict)
    """The iteration of each policy, and what its rollout showed; the entropy may come with the update."""
    highest: float = -math.inf

    def before_update(self, iteration: Iteration) -> bool:
        kl = iteration.metrics["rollout/kl"]
        self.highest = max(kl, self.highest)
        for name in (f"{value:g}" for value in self.values if kl >= value):
            if name not in self.kept:
                self.save(self.folder / name)
                self.kept[name] = iteration.number, iteration.metrics
        return False

    def finish(self, metrics: dict[str, float]) -> dict[str, float]:
        """Write beside each kept policy what was measured of it, and say at which values there is none."""
        told = {f"kept/{value:g}/reached": float(f"{value:g}" in self.kept) for value in self.values}
        for name, (number, measured) in self.kept.items():
            told |= {f"kept/{name}/iteration": float(number), f"kept/{name}/kl": measured["rollout/kl"]}
            shown = {each: measured[each] for each in KEPT_METRICS if each in measured}
            if distributed.rank() == 0:
                text = json.dumps({"iteration": number, **shown}, indent=1) + "\n"
                (self.folder / name / KEPT_FILE).write_text(text, encoding="utf-8")
        if missed := [f"{value:g}" for value in self.values if f"{value:g}" not in self.kept]:
            logger.warning(
                "keep_at_kl: no policy is kept at %s: the KL to SFT reached %.3g at most",
                ", ".join(missed),
                self.highest,
            )
        return metrics | told

    def state(self) -> State:
        return {"kept": {name: list(each) for name, each in self.kept.items()}, "highest": self.highest}

    def load_state(self, state: State) -> None:
        self.kept = {name: (number, measured) for name, (number, measured) in state["kept"].items()}
        self.highest = state["highest"]


class EarlyStopping(Hook):
    """Stops where the guard says so, and returns the policy that was worth keeping, with its metrics."""

    def __init__(self, rollback: RollBack, recorder: Recorder) -> None:
        self.rollback, self.recorder = rollback, recorder
        self.kept_metrics: dict[str, float] = {}

    def before_update(self, iteration: Iteration) -> bool:
        if self.rollback.watch(iteration.number, iteration.metrics):
            self.kept_metrics = iteration.metrics
        if self.rollback.reason is None:
            return False
        self.recorder.advance(iteration.number - 1, iteration.total, f"stopped: {self.rollback.reason}", at_most=True)
        return True

    def finish(self, metrics: dict[str, float]) -> dict[str, float]:
        return {**self.kept_metrics, **self.rollback.finish(self.recorder)}

    def state(self) -> State:
        return {"kept_metrics": self.kept_metrics, "rollback": self.rollback.state()}

    def load_state(self, state: State) -> None:
        self.kept_metrics = state["kept_metrics"]
        self.rollback.load_state(state["rollback"])


@dataclass
class SampleTables(Hook):
    """A table of responses every few iterations, and of the last ones."""

    end_token: int
    decode: Callable[[Sequence[int]], str]
    recorder: Recorder

    def before_update(self, iteration: Iteration) -> bool:
        number, total = iteration.number, iteration.total
        if (number - 1) % math.ceil(total / SAMPLE_TABLES) == 0 or number > total:
            rows = samples(iteration.rollout, self.end_token, self.decode)
            self.recorder.table(f"samples/iteration-{number:04d}.json", rows)
        return False


@dataclass
class ReportProgress(Hook):
    """A rollout measures the policy as the updates before it have left it."""

    recorder: Recorder
    may_stop: bool = False

    def before_update(self, iteration: Iteration) -> bool:
        number, total, latest = iteration.number, iteration.total, iteration.metrics
        note = f"return {latest['rollout/return']:.3f}, KL {latest['rollout/kl']:.3f}"
        closing = "closing evaluation: " if number > total else ""
        self.recorder.advance(number - 1, total, closing + note, self.may_stop)
        return False


@dataclass
class Prefetch(Hook):
    """Overlap: the engine draws the next iteration's responses while the policy learns from this one's."""

    engine: OverlappedEngine
    requests: Iterator[RolloutRequest]
    """From the first iteration on."""
    _taken: int = 0

    def before_update(self, iteration: Iteration) -> bool:
        # The last rollout waits for the update, since it measures the policy that comes out.
        if iteration.number < iteration.total:
            while self._taken <= iteration.number:
                request = next(self.requests)
                self._taken += 1
            self.engine.begin(*request)
        return False


class Resume:
    """Keeps the state of all parts after each iteration, and takes it up where an interrupted run left it."""

    def __init__(self, recorder: Recorder, parts: Sequence[Trainer | KLControl | Hook]) -> None:
        self.recorder = recorder
        self.parts = parts
        self.done = 0
        self.metrics: dict[str, float] = {}
        """Of the last whole iteration."""
        if (state := recorder.restore()) is not None:
            self.load_state(state)

    def checkpoint(self, iteration: Iteration) -> None:
        """After each iteration, also after the last rollout, which has no update."""
        self.done, self.metrics = iteration.number, iteration.metrics
        self.recorder.checkpoint(self.done, self.state)

    def state(self) -> State:
        parts = {type(part).__name__: part.state() for part in self.parts}
        return {"done": self.done, "metrics": self.metrics, "parts": parts}

    def load_state(self, state: State) -> None:
        parts = {type(part).__name__: part for part in self.parts}
        if parts.keys() != state.get("parts", {}).keys():
            raise DensePathError(
                "this run was interrupted under another version of the REINFORCE loop, whose state does not fit this "
                "one; start it anew with --force"
            )
        self.done, self.metrics = state["done"], state["metrics"]
        for name, part in parts.items():
            part.load_state(state["parts"][name])
