"""A rollout: responses of one iteration, scored before the update, and its metrics, none of which needs a label."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpr_core.algorithms.base import Advantages, RolloutBatch
from dpr_core.data.encoding import TokenSequence
from dpr_core.masking import masked_mean, masked_sum
from dpr_core.models.dense_reward import ScoredTokens
from dpr_core.rollouts.engine import Completion

REPEATED_NGRAM = 4
"""Tokens in a row that count as a repetition when a response holds them a second time."""


@dataclass(frozen=True)
class Rollout:
    """Responses with their scores under the actor, both frozen models, and the critic; tensors are (B, T)."""

    completions: list[Completion]
    sequences: list[TokenSequence]
    scored: ScoredTokens
    old_log_probs: Tensor
    """The actor's at the temperature that drew the responses, as its entropies are."""
    entropies: Tensor
    version: int = 0
    """Optimizer steps behind the policy that drew the responses."""
    values: Tensor | None = None
    """The critic's, if there is one."""
    tempered_log_sft: Tensor | None = None
    """log pi_SFT as the actor computes, at the temperature that drew: the other end of the KL, where that is another
    than the reward's."""

    @property
    def log_sft(self) -> Tensor:
        """log pi_SFT at the temperature that drew the responses."""
        return self.scored.log_sft if self.tempered_log_sft is None else self.tempered_log_sft

    @property
    def sequence_kl(self) -> float:
        """Mean over sequences of the summed log-ratio to SFT."""
        return float(masked_sum(self.old_log_probs - self.log_sft, self.scored.mask).mean())

    @property
    def batch(self) -> RolloutBatch:
        """What an algorithm assigns credit from."""
        rewards, mask = self.scored.rewards, self.scored.mask
        values = torch.zeros_like(rewards) if self.values is None else self.values
        return RolloutBatch(rewards, self.old_log_probs, self.log_sft, mask, values)


def describe(rollout: Rollout, advantages: Advantages, end_token: int) -> dict[str, float]:
    """Metrics of the rollout, before its update."""
    mask, scored = rollout.scored.mask, rollout.scored
    lengths = mask.sum(dim=1)
    ended = [c.ended(end_token) for c in rollout.completions]
    last = advantages.advantages.gather(1, (lengths - 1)[:, None])[:, 0]
    engine_gap = max(
        abs(a - b)
        for c, row in zip(rollout.completions, rollout.old_log_probs.tolist(), strict=True)
        for a, b in zip(c.log_probs, row, strict=False)
    )
    metrics = {
        "rollout/reward": float(masked_mean(scored.rewards, mask)),
        "rollout/return": float(advantages.returns[:, 0].mean()),
        "rollout/return_deviation": float(advantages.returns[:, 0].std(correction=0)),
        "rollout/kl": rollout.sequence_kl,
        "rollout/entropy": float(masked_mean(rollout.entropies, mask)),
        "rollout/length": float(lengths.float().mean()),
        "rollout/eos_rate": sum(ended) / len(ended),
        "rollout/engine_log_prob_gap": engine_gap,
    }
    label_free = signals([s.response for s in rollout.sequences], scored.log_sft, scored.log_ref, mask)
    metrics |= {f"rollout/{name}": value for name, value in label_free.items()}
    if any(ended):
        eos = [float(a) for a, e in zip(last, ended, strict=True) if e]
        metrics["rollout/eos_advantage"] = sum(eos) / len(eos)
    return metrics


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


def signals(responses: Sequence[Sequence[int]], log_sft: Tensor, log_ref: Tensor, mask: Tensor) -> dict[str, float]:
    """`log_sft` and the `contrast` of SFT to its reference, each with its standard error over responses; repetition.
    Guards watch the first two."""
    lengths = mask.sum(dim=1).double()
    supports = masked_sum(log_sft.double(), mask)
    contrasts = masked_sum((log_sft - log_ref).double(), mask)
    per_token = supports.sum() / lengths.sum()
    return {
        "log_sft": float(per_token),
        # A mean over all tokens is a ratio of two means over responses; this is its linearised error.
        "log_sft_error": _error_of_mean((supports - per_token * lengths) / lengths.mean()),
        "contrast": float(contrasts.mean()),
        "contrast_error": _error_of_mean(contrasts),
        "repetition": repetition(responses),
    }


def repetition(responses: Sequence[Sequence[int]]) -> float:
    """The share of n-grams that their response already held; 0 where all responses are too short for one."""
    n = REPEATED_NGRAM
    ngrams = [[tuple(r[i : i + n]) for i in range(len(r) - n + 1)] for r in responses]
    total = sum(map(len, ngrams))
    return sum(len(each) - len(set(each)) for each in ngrams) / total if total else 0.0


def _error_of_mean(values: Tensor) -> float:
    """0 for a single value, whose error cannot be known."""
    count = len(values)
    return float(torch.std(values)) / math.sqrt(count) if count > 1 else 0.0
