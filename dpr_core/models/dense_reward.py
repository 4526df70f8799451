"""The recovered reward: two frozen checkpoints of one SFT run and a formula."""

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
    mask: Tensor


FORMULAS: dict[str, Callable[[TokenScores, TokenScores, Tensor], Tensor]] = {
    "baseline_relative": lambda sft, ref, mask: rewards.baseline_relative(sft.log_probs, ref.log_probs),
    "with_value": lambda sft, ref, mask: rewards.with_value(sft.log_probs, sft.values, mask),
    "without_baseline": lambda sft, ref, mask: rewards.without_baseline(sft.log_probs),
}


@dataclass
class DenseReward:
    """Scores responses under both models in the same shapes; one pass of pi_SFT serves reward and KL."""

    sft: Policy
    reference: Policy
    formula: str
    tokens_per_micro_batch: int = 8192

    def __post_init__(self) -> None:
        self.sft.requires_grad_(False)
        self.reference.requires_grad_(False)

    def __call__(
        self, sequences: Sequence[TokenSequence], on_progress: Callable[[int, int], None] | None = None
    ) -> ScoredTokens:
        mask = response_mask([len(s.response) for s in sequences])
        sft = score(self.sft, sequences, self.tokens_per_micro_batch, on_progress=on_progress)
        ref = score(self.reference, sequences, self.tokens_per_micro_batch)
        token_rewards = torch.where(mask, FORMULAS[self.formula](sft, ref, mask), 0)
        return ScoredTokens(token_rewards, sft.log_probs, ref.log_probs, mask)
