"""Potential-based shaping at gamma = 1, and the shift by a value function: appendices A.9 and A.10."""

import torch
from torch import Tensor

from dpr_core.theory.bounds import norm
from dpr_core.theory.claim import Case, Measured, TheoryClaim, at_most, equal
from dpr_core.theory.soft_bellman import boltzmann, log_boltzmann, recovered_reward, soft_q, soft_value
from dpr_core.theory.token_mdp import Mdp, next_value, token_tree


def _returns_to_go(mdp: Mdp, table: Tensor) -> Tensor:
    return mdp.trajectories.along(table).flip(1).cumsum(1).flip(1)


def relative_shift(mdp: Mdp, sft: Tensor, ref: Tensor) -> tuple[Tensor, Tensor]:
    """A.9 as it holds, on every path: the return of r_hat less that of r_SFT - r_ref, and -(V_SFT - V_ref)(s_t)."""
    relative = log_boltzmann(sft) - log_boltzmann(ref)
    rewards = recovered_reward(mdp, sft) - recovered_reward(mdp, ref)
    shift = _returns_to_go(mdp, relative - rewards)
    return shift, -mdp.trajectories.along(soft_value(sft) - soft_value(ref))


def a9_gap_as_printed(mdp: Mdp, sft: Tensor, ref: Tensor) -> float:
    """How far apart A.9's two sides are as printed: |G_SFT - G_ref| of the log-prob returns, and |V_SFT - V_ref|."""
    printed = _returns_to_go(mdp, log_boltzmann(sft) - log_boltzmann(ref)).abs()
    values = mdp.trajectories.along(soft_value(sft) - soft_value(ref)).abs()
    return float((printed - values).abs().max())


def dynamic_range_sides(mdp: Mdp, sft: Tensor, ref: Tensor) -> tuple[float, float, float]:
    """A.9's promise ||V_SFT||_inf - ||V_SFT - V_ref||_inf, and how much max |G_t| in fact falls to that of r_hat.

    The second number is the fall from the returns of log pi_SFT, the third the fall from those of w/V's reward.
    """
    value, difference = soft_value(sft), soft_value(sft) - soft_value(ref)
    promised = float(value.abs().max() - difference.abs().max())
    relative = _returns_to_go(mdp, log_boltzmann(sft) - log_boltzmann(ref)).abs().max()
    naive = _returns_to_go(mdp, log_boltzmann(sft)).abs().max()
    with_value = _returns_to_go(mdp, recovered_reward(mdp, sft)).abs().max()
    return promised, float(naive - relative), float(with_value - relative)


def a9_counter_example() -> tuple[float, float]:
    """A.9 as printed, one token out of two: the largest |G_SFT - G_ref|, and ||V_SFT - V_ref||_inf, its bound.

    Q_SFT = (log 3, log 1) and Q_ref = (log 2, log 2): both have V = log 4, yet they are different policies.
    """
    mdp = token_tree(2, 1)
    sft = torch.log(torch.tensor([[3.0, 1.0]], dtype=torch.float64))
    ref = torch.log(torch.tensor([[2.0, 2.0]], dtype=torch.float64))
    returns = _returns_to_go(mdp, log_boltzmann(sft) - log_boltzmann(ref))
    return float(returns.abs().max()), norm(soft_value(sft) - soft_value(ref), "linf")


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


def _relative_shift(case: Case) -> Measured:
    shift, value = relative_shift(case.tree, case.sft, case.ref)
    return equal(shift, value)


def _relative_shift_bound(case: Case) -> Measured:
    shift, _ = relative_shift(case.tree, case.sft, case.ref)
    return at_most([(float(shift.abs().max()), norm(soft_value(case.sft) - soft_value(case.ref), "linf"))])


def _a9_as_printed(case: Case) -> Measured:
    return Measured(a9_gap_as_printed(case.tree, case.sft, case.ref))


def _dynamic_range(case: Case) -> Measured:
    moved = case.sft + 10, case.ref + 10
    sides = [dynamic_range_sides(case.tree, *pair) for pair in ((case.sft, case.ref), moved)]
    naive = [(promised, naive) for promised, naive, _ in sides]
    return at_most(naive, kept=float(sides[0][0] <= sides[0][1]), kept_v=float(sides[0][0] <= sides[0][2]))


def _potential(case: Case) -> Tensor:
    return torch.randn(case.tree.states, generator=case.generator(), dtype=torch.float64)


def _shaping(case: Case) -> Measured:
    gap = policy_gap(case.tree, case.sft, _potential(case))
    return Measured(max(gap, soft_value_gap(case.tree, case.sft, _potential(case))))


def _shaping_at_ends(case: Case) -> Measured:
    ends = torch.randn(case.tree.terminals, generator=case.generator(1), dtype=torch.float64)
    return Measured(policy_gap(case.tree, case.sft, _potential(case), ends))


def _shaping_as_printed(case: Case) -> Measured:
    return Measured(a10_gap_as_printed(case.tree, case.sft, _potential(case)))


CLAIMS = [
    TheoryClaim(
        "A.9 repaired: the shift is -(V_SFT - V_ref)",
        "of the return of r_hat against that of r_SFT - r_ref",
        _relative_shift,
    ),
    TheoryClaim("A.9 repaired: bounded by the value gap", "||V_SFT - V_ref||_inf", _relative_shift_bound),
    TheoryClaim(
        "A.9 as printed",
        "|G_SFT - G_ref| = |V_SFT - V_ref| needs r_SFT = r_ref, and then both sides are 0: a9_counter_example",
        _a9_as_printed,
    ),
    TheoryClaim(
        "A.9: the dynamic range shrinks by the promise",
        "against log pi_SFT in {mean[kept]:.0%}, against w/V in {mean[kept_v]:.0%} of the instances; adding 10 to "
        "all logits breaks it in every one: the promise moves, the returns do not",
        _dynamic_range,
    ),
    TheoryClaim("A.10 with F(s_H) = 0", "the policy stays, Q^F = Q - F, V^F = V - F", _shaping),
    TheoryClaim("A.10 for any F", "not where F differs between terminal states: a10_counter_example", _shaping_at_ends),
    TheoryClaim(
        "A.10's line Q^F - (V^F + F) = Q - V", "off by F(s); Q^F + F - (V^F + F) is meant", _shaping_as_printed
    ),
]
