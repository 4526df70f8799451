"""A rollout: responses of one iteration, scored before the update, and its metrics, none of which needs a label."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpr_core import distributed
from dpr_core.algorithms.base import Advantages, LossInputs, Objective, RolloutBatch, required
from dpr_core.data.encoding import TokenSequence
from dpr_core.logprobs import TokenScores
from dpr_core.masking import masked_mean, masked_sum
from dpr_core.models.dense_reward import ScoredTokens
from dpr_core.rollouts.engine import Completion, log_probs

REPEATED_NGRAM = 4
"""Tokens in a row that count as a repetition when a response holds them a second time."""


@dataclass(frozen=True)
class Rollout:
    """Responses with their scores under the actor, both frozen models, and the critic; tensors are (B, T). Those of the
    actor and of the KL are at the temperature that drew the responses."""

    completions: list[Completion]
    sequences: list[TokenSequence]
    scored: ScoredTokens
    log_sft: Tensor
    """log pi_SFT, the other end of the KL, computed as the actor's are: the reward's may be at another temperature, and
    in another arithmetic."""
    old_log_probs: Tensor
    """The actor's, from a pass of its own, or from the engine that drew."""
    entropies: Tensor | None
    """The actor's; None without that pass, where the update measures them."""
    version: int = 0
    """Optimizer steps behind the policy that drew the responses."""
    values: Tensor | None = None
    """The critic's, if there is one."""
    expected_rewards: Tensor | None = None
    """What the actor expects of its next token, where a baseline needs it."""

    @property
    def sequence_kl(self) -> float:
        """Mean over sequences of the summed log-ratio to SFT."""
        return float(masked_sum(self.old_log_probs - self.log_sft, self.scored.mask).mean())

    @property
    def batch(self) -> RolloutBatch:
        """What an algorithm assigns credit from."""
        rewards, mask = self.scored.rewards, self.scored.mask
        values = torch.zeros_like(rewards) if self.values is None else self.values
        return RolloutBatch(rewards, self.old_log_probs, self.log_sft, mask, values, self.expected_rewards)


class OnPolicy:
    """The objective of a method that learns all of a rollout in one step, from the weights that drew it: pi_old's
    log-probs are those of the step's own forward pass, so that the ratio is 1 to the bit. What a pass before the update
    would have told of the actor is measured in passing."""

    def __init__(self, method: Objective) -> None:
        self.method = method
        self.loss_reduction = method.loss_reduction
        self._gaps: list[float] = []

    def __call__(self, scores: TokenScores, inputs: LossInputs) -> dict[str, Tensor]:
        own = scores.log_probs.detach()
        self._gaps.append(float((own - required(inputs.old_log_probs)).abs().max()))
        return {**self.method(scores, inputs._replace(old_log_probs=own)), "entropy": scores.entropies}

    def take(self, metrics: dict[str, float]) -> dict[str, float]:
        """The actor's part of `describe`, out of the metrics of the step, from which it is removed."""
        measured = {"rollout/engine_log_prob_gap": max(distributed.all_gather(self._gaps))}
        # A step that was skipped has measured nothing.
        if "train/entropy" in metrics:
            measured["rollout/entropy"] = metrics.pop("train/entropy")
        return measured


def describe(rollout: Rollout, advantages: Advantages, end_token: int) -> dict[str, float]:
    """Metrics of the rollout, before its update."""
    mask, scored = rollout.scored.mask, rollout.scored
    lengths = mask.sum(dim=1)
    ended = [c.ended(end_token) for c in rollout.completions]
    last = advantages.advantages.gather(1, (lengths - 1)[:, None])[:, 0]
    metrics = {
        "rollout/reward": float(masked_mean(scored.rewards, mask)),
        "rollout/return": float(advantages.returns[:, 0].mean()),
        "rollout/return_deviation": float(advantages.returns[:, 0].std(correction=0)),
        "rollout/kl": rollout.sequence_kl,
        "rollout/length": float(lengths.float().mean()),
        "rollout/eos_rate": sum(ended) / len(ended),
    }
    if rollout.entropies is not None:
        gaps = (rollout.old_log_probs - log_probs(rollout.completions)).abs()
        metrics["rollout/entropy"] = float(masked_mean(rollout.entropies, mask))
        metrics["rollout/engine_log_prob_gap"] = float(gaps.max())
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
