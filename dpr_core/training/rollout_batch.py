"""One rollout batch: what is known of it, and what is told of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpr_core.algorithms.base import Advantages, RolloutBatch
from dpr_core.data.encoding import TokenSequence
from dpr_core.masking import masked_mean, masked_sum
from dpr_core.models.dense_reward import ScoredTokens
from dpr_core.rollouts.engine import Completion
from dpr_core.training.rollout_metrics import signals


@dataclass(frozen=True)
class Rollout:
    """One batch of responses with everything that is known of them before the update; tensors are (B, T)."""

    completions: list[Completion]
    sequences: list[TokenSequence]
    scored: ScoredTokens
    old_log_probs: Tensor
    entropies: Tensor
    version: int = 0
    """Optimizer steps behind the policy that drew the responses."""

    @property
    def sequence_kl(self) -> float:
        """Mean over sequences of the summed log-ratio to SFT."""
        return float(masked_sum(self.old_log_probs - self.scored.log_sft, self.scored.mask).mean())

    def experience(self, values: Tensor | None) -> RolloutBatch:
        """What a method needs of it, with the values of a critic if there is one."""
        rewards, mask = self.scored.rewards, self.scored.mask
        known = torch.zeros_like(rewards) if values is None else values
        return RolloutBatch(rewards, self.old_log_probs, self.scored.log_sft, mask, known)


def describe(rollout: Rollout, credit: Advantages, end_token: int) -> dict[str, float]:
    """Metrics of the rollout batch, before its update."""
    mask, scored = rollout.scored.mask, rollout.scored
    lengths = mask.sum(dim=1)
    ended = [c.ended(end_token) for c in rollout.completions]
    last = credit.advantages.gather(1, (lengths - 1)[:, None])[:, 0]
    engine_gap = max(
        abs(a - b)
        for c, row in zip(rollout.completions, rollout.old_log_probs.tolist(), strict=True)
        for a, b in zip(c.log_probs, row, strict=False)
    )
    described = {
        "rollout/reward": float(masked_mean(scored.rewards, mask)),
        "rollout/return": float(credit.returns[:, 0].mean()),
        "rollout/return_deviation": float(credit.returns[:, 0].std(correction=0)),
        "rollout/kl": rollout.sequence_kl,
        "rollout/entropy": float(masked_mean(rollout.entropies, mask)),
        "rollout/length": float(lengths.float().mean()),
        "rollout/eos_rate": sum(ended) / len(ended),
        "rollout/engine_log_prob_gap": engine_gap,
    }
    told = signals([s.response for s in rollout.sequences], scored.log_sft, scored.log_ref, mask)
    described |= {f"rollout/{name}": value for name, value in told.items()}
    if any(ended):
        eos = [float(a) for a, e in zip(last, ended, strict=True) if e]
        described["rollout/eos_advantage"] = sum(eos) / len(eos)
    return described


def samples(
    rollout: Rollout, end_token: int, decode: Callable[[Sequence[int]], str], count: int = 8
) -> list[dict[str, object]]:
    """The first few responses, for people to read."""
    totals = masked_sum(rollout.scored.rewards, rollout.scored.mask).tolist()
    return [
        {
            "prompt": decode(c.prompt),
            "response": decode(c.response),
            "reward": total,
            "tokens": c.length,
            "ended": c.ended(end_token),
            "policy_version": rollout.version,
        }
        for c, total in list(zip(rollout.completions, totals, strict=True))[:count]
    ]
