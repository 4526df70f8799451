"""Soft values and the reward inside a policy's logits: Eq. 1, Eq. 4, Eq. 7, appendices A.2 and A.5."""

import torch
from torch import Tensor

from dpr_core.theory.token_mdp import Mdp, next_value


def soft_value(q: Tensor, beta: float = 1.0) -> Tensor:
    """V(s) = beta log sum_a exp(Q(s, a) / beta) (Eq. 1)."""
    return beta * torch.logsumexp(q / beta, dim=-1)


def boltzmann(q: Tensor, beta: float = 1.0) -> Tensor:
    """pi_Q(a | s) = exp((Q(s, a) - V(s)) / beta) (Eq. 1)."""
    return torch.softmax(q / beta, dim=-1)


def log_boltzmann(q: Tensor, beta: float = 1.0) -> Tensor:
    """log pi_Q(a | s) = (Q(s, a) - V(s)) / beta (Eq. 7)."""
    return torch.log_softmax(q / beta, dim=-1)


def entropy(policy: Tensor) -> Tensor:
    """H(pi(. | s)) = -sum_a pi log pi; 0 log 0 counts as 0."""
    return -torch.xlogy(policy, policy).sum(-1)


def regularised(q: Tensor, policy: Tensor, weight: float) -> Tensor:
    """E_pi[Q] + weight H(pi) in every state. Eq. 1 needs weight = beta (A.2); section 3 and A.3 print -beta."""
    return (policy * q).sum(-1) + weight * entropy(policy)


def eq1_gap(q: Tensor, policy: Tensor, beta: float) -> Tensor:
    """Zero in every state: E_pi[Q] + beta H(pi) - (V - beta KL(pi || pi_Q)), which proves Eq. 1 optimal (A.2)."""
    divergence = (torch.xlogy(policy, policy) - policy * log_boltzmann(q, beta)).sum(-1)
    return regularised(q, policy, beta) - (soft_value(q, beta) - beta * divergence)


def eq1_sign_counter_example() -> tuple[float, float]:
    """Q = (1, 0), beta = 1: E_pi[Q] - H(pi), as section 3 prints it, at pi_Q and at the first token alone (Eq. 1)."""
    q = torch.tensor([1.0, 0.0], dtype=torch.float64)
    one_hot = torch.tensor([1.0, 0.0], dtype=torch.float64)
    return float(regularised(q, boltzmann(q), -1.0)), float(regularised(q, one_hot, -1.0))


def soft_q(mdp: Mdp, reward: Tensor, beta: float = 1.0, gamma: float = 1.0) -> Tensor:
    """The soft optimal Q of a reward: Q = r + gamma E[V(s')], exact after a backup for every step (A.5)."""
    q = reward
    for _ in range(mdp.horizon):
        q = reward + gamma * next_value(mdp, soft_value(q, beta))
    return q


def hard_q(mdp: Mdp, reward: Tensor) -> Tensor:
    """The optimal Q of a reward without entropy: Q = r + E[max_a' Q(s', a')]."""
    q = reward
    for _ in range(mdp.horizon):
        q = reward + next_value(mdp, q.max(-1).values)
    return q


def recovered_reward(mdp: Mdp, q: Tensor, beta: float = 1.0, gamma: float = 1.0) -> Tensor:
    """The one reward whose soft optimal Q is the given Q: r = Q - gamma E[V(s')] (A.3, A.5)."""
    return q - gamma * next_value(mdp, soft_value(q, beta))


def shaped_log_policy(mdp: Mdp, reward: Tensor, beta: float = 1.0) -> Tensor:
    """The right-hand side of Eq. 4, (r + E[V(s')] - V(s)) / beta, with V by backward induction from r alone."""
    value = soft_value(soft_q(mdp, reward, beta), beta)
    return (reward + next_value(mdp, value) - value[:, None]) / beta


def return_shift(mdp: Mdp, q: Tensor) -> Tensor:
    """sum_{k>=t} log pi_Q - sum_{k>=t} r along every trajectory, (N, H); on a tree it is -V(s_t) (A.5)."""
    difference = log_boltzmann(q) - recovered_reward(mdp, q)
    along = mdp.trajectories.along(difference)
    return torch.where(mdp.trajectories.mask, along.flip(1).cumsum(1).flip(1), 0)
