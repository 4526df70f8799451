"""Best-of-n sampling: of n responses to a prompt, the one with the highest score."""

import math
from collections.abc import Sequence

from torch import Tensor

from dpr_core.masking import masked_sum


def sequence_returns(rewards: Tensor, mask: Tensor) -> list[float]:
    """The undiscounted return of each response."""
    totals: list[float] = masked_sum(rewards, mask).tolist()
    return totals


def mean_log_probs(log_probs: Tensor, mask: Tensor) -> list[float]:
    """The mean log-prob of each response's tokens: a sum would favour short responses."""
    means: list[float] = (masked_sum(log_probs, mask) / mask.sum(dim=-1)).tolist()
    return means


def best_of_each(scores: Sequence[float], n: int) -> list[int]:
    """The index of the highest of every n consecutive scores; of equal ones, the first."""
    return [max(range(start, start + n), key=lambda i: scores[i]) for start in range(0, len(scores), n)]


def kl_bound(n: int) -> float:
    """log n - (n - 1) / n, an upper bound of the KL from best-of-n to the policy that it samples from."""
    return math.log(n) - (n - 1) / n
