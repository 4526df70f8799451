"""Masks over response tokens. True means: this position holds a token that the policy chose."""

from collections.abc import Sequence

import torch
from torch import Tensor


def response_mask(lengths: Sequence[int]) -> Tensor:
    """(B, T) bool: row i is True in its first lengths[i] columns. Made from lengths, never from token ids."""
    columns = torch.arange(max(lengths, default=0))
    return columns[None, :] < torch.tensor(lengths, dtype=torch.long)[:, None]


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the True positions of the whole batch."""
    return values[mask].mean()


def mean_by_position(values: Tensor, mask: Tensor) -> list[float]:
    """For each of T positions, the mean over the rows that reach it."""
    reached: list[float] = (masked_sum(values.T, mask.T) / mask.sum(dim=0)).tolist()
    return reached


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Per-row sum over the True positions: (B, T) -> (B,)."""
    return torch.where(mask, values, 0).sum(dim=-1)


def causal_mask(positions: Tensor, width: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """(B, 1, T, width), to be added: a token at position p sees columns p - window + 1 to p."""
    back = positions[:, None, :, None] - torch.arange(width, device=positions.device)
    hidden = back < 0 if window is None else (back < 0) | (back >= window)
    return torch.zeros(back.shape, dtype=dtype, device=back.device).masked_fill_(hidden, -torch.inf)
