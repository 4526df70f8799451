"""Importance sampling: ratios that make samples of one policy count as samples of another."""

from typing import Literal

import torch
from torch import Tensor

from dpr_core.logprobs import bounded
from dpr_core.masking import masked_mean


def importance(log_wanted: Tensor, log_drawn: Tensor, mask: Tensor, per: Literal["token", "sequence"]) -> Tensor:
    """(B, T): pi_wanted / pi_drawn of each token, or of the response that it is in; 1 outside the mask."""
    gaps = torch.where(mask, log_wanted - log_drawn, 0.0)
    if per == "sequence":
        gaps = torch.where(mask, gaps.sum(dim=1, keepdim=True), 0.0)
    return bounded(gaps).exp()


def mismatch(log_wanted: Tensor, log_drawn: Tensor, mask: Tensor) -> float:
    """KL(pi_drawn || pi_wanted) a token, by the estimate r - 1 - log r, which is never negative; r = wanted / drawn."""
    gaps = (log_wanted - log_drawn).double()
    return float(masked_mean(torch.expm1(bounded(gaps)) - gaps, mask))
