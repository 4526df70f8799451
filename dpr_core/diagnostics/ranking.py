"""How often a number tells the two kinds of thing apart that it is asked about."""

import torch
from torch import Tensor


def auroc(higher: Tensor, lower: Tensor) -> float:
    """Chance that one of `higher` exceeds one of `lower`, both drawn at random; a tie counts one half."""
    if not len(higher) or not len(lower):
        raise ValueError("an AUROC needs at least one value on either side")
    sorted_lower = lower.sort().values
    below = torch.searchsorted(sorted_lower, higher, right=False)
    not_above = torch.searchsorted(sorted_lower, higher, right=True)
    return float((below + not_above).double().mean() / (2 * len(lower)))
