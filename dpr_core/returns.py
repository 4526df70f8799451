"""From token rewards to returns. All tensors are (B, T); what lies outside the mask is ignored and comes out as 0."""

import torch
from torch import Tensor


def reward_to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """G_t = sum over k >= t of gamma^(k-t) r_k (line 8 of Algorithm 1)."""
    rewards = torch.where(mask, rewards, 0)
    returns = torch.zeros_like(rewards)
    tail = rewards.new_zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        tail = rewards[:, t] + gamma * tail
        returns[:, t] = tail
    return torch.where(mask, returns, 0)
