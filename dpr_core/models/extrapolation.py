"""Contrastive decoding: pi_SFT and pi_ref made one policy, token by token, without training."""

from dataclasses import dataclass

import torch

from dpr_core.data.batching import Batch
from dpr_core.logprobs import Contrast
from dpr_core.models.policy import Policy


@dataclass(frozen=True)
class Contrasted:
    """pi(a | s) proportional to pi_SFT(a | s) (pi_SFT(a | s) / pi_ref(a | s))^k.

    In every state this is the policy with the highest E[r] - KL(pi || pi_SFT) / k, r being Eq. 5: it looks one token
    ahead.
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
    def logits_per_chunk(self) -> int:
        return self.sft.logits_per_chunk

    def response_states(self, batch: Batch) -> Contrast:
        """The states of both models; `token_kl` makes one distribution of them."""
        return Contrast(self.sft.response_states(batch), self.reference.response_states(batch), self.k)
