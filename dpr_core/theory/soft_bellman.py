"""Soft Bellman equations and the reward implied by a policy's logits: Eq. 1, Eq. 4, Eq. 7, appendices A.2 and A.5."""

import torch
from torch import Tensor

from dpr_core.theory.claim import Case, Measured, TheoryClaim, equal
from dpr_core.theory.token_mdp import Mdp, next_value, random_policy

BETAS = (0.5, 1.0, 2.0)


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


def relative_reward(sft: Tensor, ref: Tensor) -> Tensor:
    """r_hat(s, a) = log pi_SFT(a | s) - log pi_ref(a | s) (Eq. 5)."""
    return log_boltzmann(sft) - log_boltzmann(ref)


def shaped_log_policy(mdp: Mdp, reward: Tensor, beta: float = 1.0) -> Tensor:
    """The right-hand side of Eq. 4, (r + E[V(s')] - V(s)) / beta, with V by backward induction from r alone."""
    value = soft_value(soft_q(mdp, reward, beta), beta)
    return (reward + next_value(mdp, value) - value[:, None]) / beta


def return_shift(mdp: Mdp, q: Tensor) -> Tensor:
    """sum_{k>=t} log pi_Q - sum_{k>=t} r along every trajectory, (N, H); on a tree it is -V(s_t) (A.5)."""
    difference = log_boltzmann(q) - recovered_reward(mdp, q)
    along = mdp.trajectories.along(difference)
    return torch.where(mdp.trajectories.mask, along.flip(1).cumsum(1).flip(1), 0)


def _eq1(case: Case) -> Measured:
    other = random_policy(tuple(case.sft.shape), case.generator())
    gaps = [eq1_gap(case.sft, policy, beta) for beta in BETAS for policy in (other, boltzmann(case.sft, beta))]
    return equal(torch.stack(gaps), 0.0)


def _eq1_as_printed(case: Case) -> Measured:
    one_hots = torch.eye(case.vocabulary, dtype=torch.float64)
    best = torch.stack([regularised(case.sft, row.expand_as(case.sft), -1.0) for row in one_hots]).amax(0)
    return Measured(float((best - regularised(case.sft, boltzmann(case.sft), -1.0)).max()))


def _eq4(case: Case) -> Measured:
    gaps = []
    for beta in BETAS:
        reward = recovered_reward(case.tree, case.sft, beta)
        gaps.append(shaped_log_policy(case.tree, reward, beta) - log_boltzmann(case.sft, beta))
        gaps.append(soft_q(case.tree, reward, beta) - case.sft)
    return equal(torch.stack(gaps), 0.0)


def _shift(case: Case) -> Measured:
    return equal(return_shift(case.tree, case.sft), -case.tree.trajectories.along(soft_value(case.sft)))


def _shift_stochastic(case: Case) -> Measured:
    paths = case.chain.trajectories
    pathwise = return_shift(case.chain, case.chain_q) + paths.along(soft_value(case.chain_q))
    chance = paths.probabilities(case.chain_expert)[:, None]
    mean = torch.zeros(case.chain.states, dtype=torch.float64).index_put(
        (paths.states,), torch.where(paths.mask, chance * pathwise, 0), accumulate=True
    )
    return equal(mean, 0.0, path=float(pathwise.abs().max()))


CLAIMS = [
    TheoryClaim("Eq. 1 (A.2)", "E_pi[Q] + beta H(pi) = V - beta KL(pi || pi_Q) for every pi; beta 0.5, 1, 2", _eq1),
    TheoryClaim(
        "Eq. 1 with the printed sign",
        "section 3 and A.3 maximise E[Q] - beta H; a single token then beats pi_Q: eq1_sign_counter_example",
        _eq1_as_printed,
    ),
    TheoryClaim("Eq. 4 (A.5)", "log pi = (r + V(s') - V(s)) / beta with V from r alone, and r gives Q back", _eq4),
    TheoryClaim("A.5: returns differ by -V(s_t)", "on every trajectory of the tree", _shift),
    TheoryClaim(
        "A.5 with stochastic transitions",
        "-V(s_t) only on average over trajectories; up to {most[path]:.2g} off on one",
        _shift_stochastic,
    ),
]
