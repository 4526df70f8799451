"""The recovered reward: two frozen checkpoints of one SFT run and a formula."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dpr_core import rewards
from dpr_core.data.encoding import TokenSequence
from dpr_core.logprobs import TokenScores
from dpr_core.masking import response_mask
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score


class ScoredTokens(NamedTuple):
    """(B, T) over response tokens, 0 outside the mask."""

    rewards: Tensor
    log_sft: Tensor
    log_ref: Tensor
    value_gap: Tensor
    """V_SFT(s) - V_ref(s) in the state in front of each token, with V = logsumexp of a model's logits."""
    mask: Tensor


Signs = Callable[[], Tensor]

FORMULAS: dict[str, Callable[[TokenScores, TokenScores, Tensor, Signs], Tensor]] = {
    "baseline_relative": lambda sft, ref, mask, signs: rewards.baseline_relative(sft.log_probs, ref.log_probs),
    "with_value": lambda sft, ref, mask, signs: rewards.with_value(sft.log_probs, sft.values, mask),
    "without_baseline": lambda sft, ref, mask, signs: rewards.without_baseline(sft.log_probs),
    "random_sign": lambda sft, ref, mask, signs: rewards.random_sign(sft.log_probs, ref.log_probs, signs()),
}


@dataclass
class DenseReward:
    """Scores responses under both models in the same shapes; one pass of pi_SFT serves reward and KL."""

    sft: Policy
    reference: Policy
    formula: str
    tokens_per_micro_batch: int | None = None
    scale: float = 1.0
    clip_above: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self.sft.freeze()
        self.reference.freeze()

    def __call__(
        self, sequences: Sequence[TokenSequence], on_progress: Callable[[int, int], None] | None = None
    ) -> ScoredTokens:
        mask = response_mask([len(s.response) for s in sequences])
        sft = score(self.sft, sequences, self.tokens_per_micro_batch, on_progress=on_progress)
        ref = score(self.reference, sequences, self.tokens_per_micro_batch)
        raw = FORMULAS[self.formula](sft, ref, mask, lambda: random_signs(sequences, self.seed))
        token_rewards = torch.where(mask, rewards.scaled(raw, self.scale, self.clip_above), 0)
        return ScoredTokens(token_rewards, sft.log_probs, ref.log_probs, sft.values - ref.values, mask)


def random_signs(sequences: Sequence[TokenSequence], seed: int) -> Tensor:
    """(B, T) of +1 and -1, decided by seed, state and token alone, whatever else is in the batch."""
    signs = torch.ones(response_mask([len(s.response) for s in sequences]).shape)
    for row, sequence in enumerate(sequences):
        seen = hashlib.sha256(repr((seed, sequence.prompt)).encode())
        for t, token in enumerate(sequence.response):
            seen.update(b" %d" % token)
            signs[row, t] = 1 - 2 * (seen.digest()[0] & 1)
    return signs
