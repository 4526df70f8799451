"""From returns to advantages."""

import torch
from torch import Tensor


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale by one mean and one deviation over every response token of the batch (REINFORCE++)."""
    chosen = values[mask]
    variance = chosen.var(correction=0).clamp(min=1e-8)
    return torch.where(mask, (values - chosen.mean()) * variance.rsqrt(), 0)
