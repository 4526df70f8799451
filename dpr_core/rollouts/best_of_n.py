"""Best-of-n: of several responses to a prompt, the one that scores best."""

import math
from collections.abc import Sequence

from torch import Tensor

from dpr_core.masking import masked_sum


def returns(rewards: Tensor, mask: Tensor) -> list[float]:
    """Each response's undiscounted return."""
    totals: list[float] = masked_sum(rewards, mask).tolist()
    return totals


def mean_log_probs(log_probs: Tensor, mask: Tensor) -> list[float]:
    """Each response's mean over its tokens: a sum would favour short responses."""
    means: list[float] = (masked_sum(log_probs, mask) / mask.sum(dim=-1)).tolist()
    return means


def best(scores: Sequence[float], n: int) -> list[int]:
    """Of every n scores in a row, where the highest stands; of equal ones, the first."""
    return [max(range(start, start + n), key=lambda i: scores[i]) for start in range(0, len(scores), n)]


def kl_bound(n: int) -> float:
    """log n - (n - 1) / n: best-of-n's KL to the policy it draws from is at most this, whatever the score."""
    return math.log(n) - (n - 1) / n
