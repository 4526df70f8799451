"""Advantages: whitening, centring, position baseline, generalised advantage estimation (GAE).

All tensors are (B, T); what lies outside the mask is ignored and comes out as 0.
"""

import torch
from torch import Tensor

from dpr_core.returns import reward_to_go


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale by one mean and one deviation over every response token of the batch (REINFORCE++)."""
    chosen = values[mask]
    variance = chosen.var(correction=0).clamp(min=1e-8)
    return torch.where(mask, (values - chosen.mean()) * variance.rsqrt(), 0)


def centre(values: Tensor, mask: Tensor) -> Tensor:
    """Less the mean over every response token of the batch, and as large as they are."""
    return torch.where(mask, values - values[mask].mean(), 0)


def position_baseline(returns: Tensor, mask: Tensor) -> Tensor:
    """b_it = mean over the other responses j that reach position t of G_jt; 0 where no other response does."""
    returns = torch.where(mask, returns, 0)
    others = mask.sum(dim=0) - 1
    return torch.where(mask & (others > 0), (returns.sum(dim=0) - returns) / others.clamp(min=1), 0)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lambda_: float) -> Tensor:
    """A_t = sum over k >= t of (gamma lambda)^(k-t) (r_k + gamma V(s_k+1) - V(s_k)); V is 0 after the last token."""
    values = torch.where(mask, values, 0)
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    return reward_to_go(rewards + gamma * following - values, mask, gamma * lambda_)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(G - V) / Var(G) over response tokens: 1 for a perfect critic, 0 for a constant one."""
    spread = returns[mask].var(correction=0).clamp(min=1e-8)
    return float(1 - (returns - values)[mask].var(correction=0) / spread)
