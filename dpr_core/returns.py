"""Returns: reward-to-go and the terminal reward.

All tensors are (B, T); what lies outside the mask is ignored and comes out as 0.
"""

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


def terminal_reward(rewards: Tensor, mask: Tensor) -> Tensor:
    """The same total for each response, all of it at its last token (the paper's SR)."""
    totals = torch.where(mask, rewards, 0).sum(dim=-1)
    last = mask.sum(dim=-1, keepdim=True) - 1
    return torch.zeros_like(rewards).scatter(1, last.clamp(min=0), totals[:, None])
