"""What a rollout tells of the policy without labels, beyond its reward; the guards watch some of it."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dpr_core.masking import masked_sum

RUN = 4
"""Tokens in a row that count as a repetition when a response holds them a second time."""


def signals(responses: Sequence[Sequence[int]], log_sft: Tensor, log_ref: Tensor, mask: Tensor) -> dict[str, float]:
    """`log_sft` and the `contrast` of SFT to its reference, each with its standard error over responses; repetition."""
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
    """The share of runs of tokens that their response already held; 0 where all responses are too short for one."""
    runs = [[tuple(r[i : i + RUN]) for i in range(len(r) - RUN + 1)] for r in responses]
    total = sum(map(len, runs))
    return sum(len(each) - len(set(each)) for each in runs) / total if total else 0.0


def _error_of_mean(values: Tensor) -> float:
    """0 for a single value, whose error cannot be known."""
    count = len(values)
    return float(torch.std(values)) / math.sqrt(count) if count > 1 else 0.0
