"""AUROC: of any two groups of values, and of right against wrong answers within a prompt, with its interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from dpr_core.stats import mean_interval

RESAMPLES = 2000


def auroc(higher: Tensor, lower: Tensor) -> float:
    """Chance that one of `higher` exceeds one of `lower`, both drawn at random; a tie counts one half."""
    if not len(higher) or not len(lower):
        raise ValueError("an AUROC needs at least one value on either side")
    sorted_lower = lower.sort().values
    below = torch.searchsorted(sorted_lower, higher, right=False)
    not_above = torch.searchsorted(sorted_lower, higher, right=True)
    return float((below + not_above).double().mean() / (2 * len(lower)))


@dataclass(frozen=True)
class AurocEstimate:
    """A mean over prompts with its 95% interval; one prompt has no interval."""

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, values: Sequence[float], seed: int) -> Self | None:
        """None where there is nothing to average."""
        if not values:
            return None
        low, high = mean_interval(values, RESAMPLES, seed) or (None, None)
        return cls(sum(values) / len(values), low, high)


@dataclass(frozen=True)
class Correctness:
    """Mean over prompts of the AUROC among the answers to a prompt; prompts with answers of one kind do not count."""

    prompts: int
    all_right: int
    all_wrong: int
    accuracy: float
    of_return: AurocEstimate | None
    of_log_sft: AurocEstimate | None
    """Of the mean of log pi_SFT over an answer's tokens."""
    of_length: AurocEstimate | None
    """Of the number of tokens alone: what a reward would reach that saw nothing else."""

    @property
    def counted(self) -> int:
        return self.prompts - self.all_right - self.all_wrong


def auroc_by_prompt(values: Tensor, right: Tensor) -> list[float]:
    """From (prompts, samples): the AUROC of each prompt that has both right and wrong answers."""
    return [
        auroc(row[is_right], row[~is_right])
        for row, is_right in zip(values, right, strict=True)
        if bool(is_right.any()) and not bool(is_right.all())
    ]


def correctness(returns: Tensor, mean_log_sft: Tensor, lengths: Tensor, right: Tensor, seed: int) -> Correctness:
    """All arguments but the seed are (prompts, samples)."""
    of_return, of_log_sft, of_length = (
        AurocEstimate.of(auroc_by_prompt(values, right), seed) for values in (returns, mean_log_sft, lengths)
    )
    return Correctness(
        prompts=len(right),
        all_right=int(right.all(dim=1).sum()),
        all_wrong=int((~right).all(dim=1).sum()),
        accuracy=float(right.double().mean()),
        of_return=of_return,
        of_log_sft=of_log_sft,
        of_length=of_length,
    )
