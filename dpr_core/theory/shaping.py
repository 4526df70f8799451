"""Potential-based shaping at gamma = 1: appendix A.10."""

import torch
from torch import Tensor

from dpr_core.theory.soft_bellman import boltzmann, soft_q, soft_value
from dpr_core.theory.token_mdp import Mdp, next_value, token_tree


def shaped(mdp: Mdp, reward: Tensor, potential: Tensor, terminal: Tensor | None = None) -> Tensor:
    """r(s, a) + E[F(s')] - F(s) for F over states (S,); over terminal states (T,) it is 0 unless given (A.10)."""
    return reward + next_value(mdp, potential, terminal) - potential[:, None]


def policy_gap(mdp: Mdp, reward: Tensor, potential: Tensor, terminal: Tensor | None = None) -> float:
    """The largest change of the soft optimal policy under shaping; 0 if F(s_H) = 0 (A.10)."""
    before = boltzmann(soft_q(mdp, reward))
    after = boltzmann(soft_q(mdp, shaped(mdp, reward, potential, terminal)))
    return float((after - before).abs().max())


def soft_value_gap(mdp: Mdp, reward: Tensor, potential: Tensor) -> float:
    """What A.10 should say: Q^F = Q - F and V^F = V - F. The largest departure of the two."""
    before, after = soft_q(mdp, reward), soft_q(mdp, shaped(mdp, reward, potential))
    q_gap = after - (before - potential[:, None])
    v_gap = soft_value(after) - (soft_value(before) - potential)
    return float(torch.maximum(q_gap.abs().max(), v_gap.abs().max()))


def a10_gap_as_printed(mdp: Mdp, reward: Tensor, potential: Tensor) -> float:
    """A.10's line Q^F - (V^F + F) = Q - V: the largest departure. The left side is short of F(s)."""
    before, after = soft_q(mdp, reward), soft_q(mdp, shaped(mdp, reward, potential))
    left = after - (soft_value(after) + potential)[:, None]
    return float((left - (before - soft_value(before)[:, None])).abs().max())


def a10_counter_example() -> tuple[Tensor, Tensor]:
    """F(s_H) = log 3 at one of two ends, after one token with r = 0: soft optimal policies before and after (A.10)."""
    mdp = token_tree(2, 1)
    nothing = torch.zeros(1, 2, dtype=torch.float64)
    ends = torch.log(torch.tensor([3.0, 1.0], dtype=torch.float64))
    after = shaped(mdp, nothing, torch.zeros(1, dtype=torch.float64), ends)
    return boltzmann(soft_q(mdp, nothing))[0], boltzmann(soft_q(mdp, after))[0]
