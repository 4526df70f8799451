"""IQ-Learn's reduced objective and the SFT log-likelihood: Eq. 9, Prop. 1, appendices A.3 and A.4."""

from collections.abc import Callable

import torch
from torch import Tensor

from dpr_core.theory.soft_bellman import boltzmann, entropy, log_boltzmann, recovered_reward, soft_q, soft_value
from dpr_core.theory.token_mdp import Mdp, next_value, occupancy, state_occupancy, token_tree


def j_star(mdp: Mdp, q: Tensor, expert: Tensor, gamma: float = 1.0, terminal: Tensor | None = None) -> Tensor:
    """J*(Q) = <rho_E, Q - gamma E[V(s')]> - E_{rho_0}[V(s_0)] (Eq. 9, with IQ-Learn's gamma put back).

    `expert` is rho_E (S, A); `terminal` (T,) replaces the V(s_H) = 0 that A.4 needs.
    """
    value = soft_value(q)
    return (expert * (q - gamma * next_value(mdp, value, terminal))).sum() - (mdp.initial * value).sum()


def log_likelihood(q: Tensor, expert: Tensor) -> Tensor:
    """<rho_E, log pi_Q>: minus the SFT loss of Prop. 1, summed over the tokens of a response."""
    return (expert * log_boltzmann(q)).sum()


def likelihood_gradient(q: Tensor, expert: Tensor) -> Tensor:
    """The gradient of `log_likelihood` in closed form: rho_E(s, a) - rho_E(s) pi_Q(a | s)."""
    return expert - expert.sum(-1, keepdim=True) * boltzmann(q)


def gradient(objective: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The gradient of a scalar function of a table, by automatic differentiation."""
    point = at.detach().clone().requires_grad_()
    return torch.autograd.grad(objective(point), point)[0]


def telescoped(mdp: Mdp, q: Tensor, expert: Tensor, gamma: float = 1.0, terminal: Tensor | None = None) -> Tensor:
    """J*(Q) - <rho_E, log pi_Q> for any weights rho_E, written out (A.4 without its assumptions).

    It is the sum over states of V(s) times the defect of rho_E in the flow equation of rho_0 and gamma, less gamma
    times the V of the terminal states. It vanishes, gradient included, where rho_E obeys that equation and V(s_H) = 0.
    """
    arrivals = torch.einsum("sa,san->n", expert, mdp.transitions)
    defect = expert.sum(-1) - gamma * arrivals[: mdp.states] - mdp.initial
    ends = 0 if terminal is None else (arrivals[mdp.states :] * terminal).sum()
    return (defect * soft_value(q)).sum() - gamma * ends


def irl_objective(mdp: Mdp, policy: Tensor, reward: Tensor, expert: Tensor) -> Tensor:
    """L(pi, r) of Eq. 2 with psi = 0 (a linear conjugate) and H(pi) the expected sum of the entropies."""
    causal_entropy = (state_occupancy(mdp, policy) * entropy(policy)).sum()
    return ((expert - occupancy(mdp, policy)) * reward).sum() - causal_entropy


def inner_minimum(mdp: Mdp, reward: Tensor, expert: Tensor) -> Tensor:
    """min_pi L(pi, r) at psi = 0: <rho_E, r> - E_{rho_0}[V_r(s_0)] for every r. With r from Q it is Eq. 9."""
    return (expert * reward).sum() - (mdp.initial * soft_value(soft_q(mdp, reward))).sum()


def inner_minimum_as_printed(mdp: Mdp, reward: Tensor, expert: Tensor) -> Tensor:
    """The same as A.3 prints it: <rho_E - rho_pi_Q, r> - sum_t E[V(s_t)], the outer expectation read under pi_Q."""
    q = soft_q(mdp, reward)
    policy = boltzmann(q)
    values = (state_occupancy(mdp, policy) * soft_value(q)).sum()
    return ((expert - occupancy(mdp, policy)) * reward).sum() - values


def a3_counter_example() -> tuple[float, float]:
    """min_pi L and what A.3 prints for it: one token out of two, r = (1, 0), an expert who always takes the first."""
    mdp = token_tree(2, 1)
    reward = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    expert = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    return float(inner_minimum(mdp, reward, expert)), float(inner_minimum_as_printed(mdp, reward, expert))


def unbounded_below_gamma_one(mdp: Mdp, q: Tensor, expert: Tensor, gamma: float, lift: float) -> float:
    """How much J* with the paper's undiscounted rho_E gains from adding `lift` to every Q(s, .) but the prompts'.

    pi_Q and the likelihood do not move; J* grows by (1 - gamma) (E[T] - 1) lift, so it has no maximum.
    """
    raised = torch.where(mdp.initial[:, None] > 0, q, q + lift)
    return float(j_star(mdp, raised, expert, gamma) - j_star(mdp, q, expert, gamma))


def gauge_gap(mdp: Mdp, q: Tensor, offset: Tensor, expert: Tensor) -> tuple[float, float]:
    """Adding offset(s) to Q(s, .) leaves pi_Q and J* alone: the change of J*, and the largest of Eq. 4's reward."""
    moved = q + offset[:, None]
    rewards = recovered_reward(mdp, moved) - recovered_reward(mdp, q)
    return float((j_star(mdp, moved, expert) - j_star(mdp, q, expert)).abs()), float(rewards.abs().max())
