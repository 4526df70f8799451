"""The contrastive policy: pi_SFT extrapolated away from pi_ref, token by token, without training."""

from dataclasses import dataclass

import torch

from dpr_core.data.batching import Batch
from dpr_core.logprobs import Contrast
from dpr_core.models.oom import BatchLimits
from dpr_core.models.policy import Policy


@dataclass(frozen=True)
class ContrastivePolicy:
    """pi(a | s) proportional to pi_SFT(a | s) (pi_SFT(a | s) / pi_ref(a | s))^k.

    In every state it maximises E[r] - KL(pi || pi_SFT) / k for the r of Eq. 5, one token ahead.
    """

    sft: Policy
    reference: Policy
    k: float

    @property
    def device(self) -> torch.device:
        return self.sft.device

    @property
    def packed(self) -> bool:
        return self.sft.packed

    @property
    def limits(self) -> BatchLimits:
        return self.sft.limits

    @property
    def logits_per_chunk(self) -> int:
        return self.sft.logits_per_chunk

    def response_states(self, batch: Batch) -> Contrast:
        """The hidden states of both models, which `token_kl` combines into one distribution."""
        return Contrast(self.sft.response_states(batch), self.reference.response_states(batch), self.k)
