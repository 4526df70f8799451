"""The REINFORCE loop: sample, score, credit, update. What a method is stands in `dpr_core/algorithms`."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from dpr_core.algorithms import policy_gradient
from dpr_core.algorithms.dense_path_reinforce import Credit, PolicyGradient
from dpr_core.config.training import ReinforceConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.masking import masked_mean, masked_sum
from dpr_core.models.dense_reward import DenseReward, ScoredTokens
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score
from dpr_core.rollouts.engine import Completion, Engine, Sampling
from dpr_core.training.guard import KLGuard
from dpr_core.training.recorder import Recorder
from dpr_core.training.trainer import Trainer

SAMPLE_TABLES = 20
"""About as many tables of samples are kept of a run, however long it is."""


@dataclass(frozen=True)
class Rollout:
    """One batch of responses with everything that is known of them before the update; tensors are (B, T)."""

    completions: list[Completion]
    sequences: list[TokenSequence]
    scored: ScoredTokens
    old_log_probs: Tensor
    entropies: Tensor

    @property
    def sequence_kl(self) -> float:
        """Mean over sequences of the summed log-ratio to SFT."""
        return float(masked_sum(self.old_log_probs - self.scored.log_sft, self.scored.mask).mean())


@dataclass
class OnPolicy:
    """Improves `policy` in place."""

    policy: Policy
    engine: Engine
    reward: DenseReward
    trainer: Trainer
    config: ReinforceConfig
    end_token: int
    decode: Callable[[Sequence[int]], str]
    recorder: Recorder

    def run(self, prompts: Sequence[tuple[int, ...]]) -> dict[str, float]:
        """Iterate until the configured end or until the guard stops; returns the last measurements."""
        config = self.config
        method = policy_gradient(config.algorithm)
        guard = KLGuard(config.guard, self.policy) if config.guard else None
        total = iterations(len(prompts), config)
        batches = prompt_batches(prompts, config)
        rng = random.Random(f"mini-batches {config.seed}")
        measured: dict[str, float] = {}
        # One rollout more than there are updates: the last one measures the policy that comes out.
        for iteration in range(1, total + 2):
            rollout = self.roll_out(next(batches), iteration)
            credit = method.credit(
                rollout.scored.rewards, rollout.old_log_probs, rollout.scored.log_sft, rollout.scored.mask
            )
            latest = self._describe(rollout, credit)
            self.recorder.metrics(latest, self.trainer.steps_done)
            if guard and not guard.passes(rollout.sequence_kl):
                self.recorder.advance(total, total, f"stopped: KL {rollout.sequence_kl:.2f} passed the bound")
                return {**measured, "guard/stopped_at_iteration": float(iteration)}
            measured = latest
            if (iteration - 1) % math.ceil(total / SAMPLE_TABLES) == 0 or iteration > total:
                self.recorder.table(f"samples/iteration-{iteration:04d}.json", self._samples(rollout))
            note = f"return {latest['rollout/return']:.3f}, KL {latest['rollout/kl']:.3f}"
            self.recorder.advance(min(iteration, total), total, note)
            if iteration <= total:
                self._update(method, rollout, credit, rng)
        return measured

    def roll_out(self, prompts: Sequence[tuple[int, ...]], iteration: int) -> Rollout:
        """Sample responses and score them under the actor and both frozen models, in the same shapes."""
        sampling = Sampling(self.config.temperature, self.config.max_response_tokens, self.end_token)
        repeated = [prompt for prompt in prompts for _ in range(self.config.samples_per_prompt)]
        completions = self.engine.generate(repeated, sampling, seed=self.config.seed * 1_000_003 + iteration)
        sequences = [TokenSequence(c.prompt, c.response) for c in completions]
        budget = self.config.execution.tokens_per_micro_batch
        own = score(self.policy, sequences, budget, entropy=True)
        return Rollout(completions, sequences, self.reward(sequences), own.log_probs, own.entropies)

    def _update(self, method: PolicyGradient, rollout: Rollout, credit: Credit, rng: random.Random) -> None:
        order = list(range(len(rollout.sequences)))
        rng.shuffle(order)
        for start in range(0, len(order), self.config.batch_size):
            rows = order[start : start + self.config.batch_size]
            width = max(len(rollout.sequences[row].response) for row in rows)
            values = {
                "old_log_probs": rollout.old_log_probs[rows, :width],
                "advantages": credit.advantages[rows, :width],
            }
            metrics = self.trainer.step([rollout.sequences[row] for row in rows], method, values)
            self.recorder.metrics(metrics, self.trainer.steps_done)

    def _describe(self, rollout: Rollout, credit: Credit) -> dict[str, float]:
        mask, scored = rollout.scored.mask, rollout.scored
        lengths = mask.sum(dim=1)
        ended = [c.ended(self.end_token) for c in rollout.completions]
        last = credit.advantages.gather(1, (lengths - 1)[:, None])[:, 0]
        engine_gap = max(
            abs(a - b)
            for c, row in zip(rollout.completions, rollout.old_log_probs.tolist(), strict=True)
            for a, b in zip(c.log_probs, row, strict=False)
        )
        described = {
            "rollout/reward": float(masked_mean(scored.rewards, mask)),
            "rollout/return": float(credit.returns[:, 0].mean()),
            "rollout/kl": rollout.sequence_kl,
            "rollout/entropy": float(masked_mean(rollout.entropies, mask)),
            "rollout/length": float(lengths.float().mean()),
            "rollout/eos_rate": sum(ended) / len(ended),
            "rollout/engine_log_prob_gap": engine_gap,
        }
        if any(ended):
            eos = [float(a) for a, e in zip(last, ended, strict=True) if e]
            described["rollout/eos_advantage"] = sum(eos) / len(eos)
        return described

    def _samples(self, rollout: Rollout, count: int = 8) -> list[dict[str, object]]:
        totals = masked_sum(rollout.scored.rewards, rollout.scored.mask).tolist()
        return [
            {
                "prompt": self.decode(c.prompt),
                "response": self.decode(c.response),
                "reward": total,
                "tokens": c.length,
                "ended": c.ended(self.end_token),
            }
            for c, total in list(zip(rollout.completions, totals, strict=True))[:count]
        ]


def iterations(prompts: int, config: ReinforceConfig) -> int:
    """As configured, or one pass over the prompts."""
    return config.iterations or max(1, math.ceil(prompts / config.rollout_batch_size))


def optimizer_steps(prompts: int, config: ReinforceConfig) -> int:
    """Steps of the whole run, which the learning rate's schedule spans."""
    per_iteration = math.ceil(config.rollout_batch_size * config.samples_per_prompt / config.batch_size)
    return iterations(prompts, config) * per_iteration


def prompt_batches(prompts: Sequence[tuple[int, ...]], config: ReinforceConfig) -> Iterator[list[tuple[int, ...]]]:
    """Endless batches of prompts, pass after pass, each pass in a fresh order."""
    rng = random.Random(f"prompts {config.seed}")
    queue: list[tuple[int, ...]] = []
    while True:
        while len(queue) < config.rollout_batch_size:
            again = list(prompts)
            rng.shuffle(again)
            queue += again
        yield queue[: config.rollout_batch_size]
        queue = queue[config.rollout_batch_size :]
