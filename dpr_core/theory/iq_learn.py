"""IQ-Learn's reduced objective and the SFT log-likelihood: Eq. 9, Prop. 1, appendices A.3 and A.4."""

from collections.abc import Callable

import torch
from torch import Tensor

from dpr_core.theory.claim import Case, Measured, TheoryClaim, equal
from dpr_core.theory.soft_bellman import boltzmann, entropy, log_boltzmann, recovered_reward, soft_q, soft_value
from dpr_core.theory.token_mdp import Mdp, next_value, occupancy, random_policy, state_occupancy, token_tree

GAMMA = 0.9


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


def _gauge(case: Case) -> Measured:
    offset = torch.randn(case.tree.states, generator=case.generator(), dtype=torch.float64)
    moved, reward = gauge_gap(case.tree, case.sft, offset, occupancy(case.tree, case.expert))
    return equal(moved, 0.0, reward=reward)


def _log_policy_is_its_own_optimum(case: Case) -> Measured:
    q = soft_q(case.tree, log_boltzmann(case.sft))
    return equal(torch.cat([(boltzmann(q) - boltzmann(case.sft)).flatten(), soft_value(q)]), 0.0)


def _inner_minimum(case: Case) -> Measured:
    reward, expert = recovered_reward(case.tree, case.sft), occupancy(case.tree, case.expert)
    direct = irl_objective(case.tree, boltzmann(case.sft), reward, expert)
    worse = irl_objective(case.tree, boltzmann(case.actor), reward, expert)
    values = torch.stack([inner_minimum(case.tree, reward, expert), j_star(case.tree, case.sft, expert)])
    return Measured(max(float((values - direct).abs().max()), float(direct - worse)))


def _inner_minimum_as_printed(case: Case) -> Measured:
    reward, expert = recovered_reward(case.tree, case.sft), occupancy(case.tree, case.expert)
    printed = inner_minimum_as_printed(case.tree, reward, expert)
    return equal(printed, inner_minimum(case.tree, reward, expert))


def _same_objective(
    mdp: Mdp, q: Tensor, expert: Tensor, gamma: float = 1.0, terminal: Tensor | None = None
) -> Measured:
    """J* less the likelihood against `telescoped`, value and gradient; the fact `gap` is how far the two part."""
    parts: list[Callable[[Tensor], Tensor]] = [
        lambda at: j_star(mdp, at, expert, gamma, terminal),
        lambda at: log_likelihood(at, expert),
        lambda at: telescoped(mdp, at, expert, gamma, terminal),
    ]
    values = [part(q) for part in parts]
    slopes = [gradient(part, q) for part in parts]
    slope_gap = slopes[0] - slopes[1]
    gap = max(float((values[0] - values[1]).abs()), float(slope_gap.abs().max()))
    residual = max(
        float((values[0] - values[1] - values[2]).abs()),
        float((slope_gap - slopes[2]).abs().max()),
        float((slopes[1] - likelihood_gradient(q, expert)).abs().max()),
    )
    return Measured(residual, facts={"gap": gap})


def _agree(measured: Measured) -> Measured:
    return Measured(max(measured.residual, measured.facts["gap"]))


def _prop1(case: Case) -> Measured:
    return _agree(_same_objective(case.tree, case.sft, occupancy(case.tree, case.expert)))


def _demonstrations(case: Case, mdp: Mdp) -> Tensor:
    """Weights of a few trajectories with the prompts' shares right, as a data set has that rho_0 is read from."""
    paths = mdp.trajectories
    weights = random_policy((len(paths.ends),), case.generator(), 3.0)
    firsts = torch.zeros(mdp.states, dtype=torch.float64).index_put((paths.states[:, 0],), weights, accumulate=True)
    return weights * (mdp.initial / firsts.clamp_min(1e-300))[paths.states[:, 0]]


def _prop1_sampled(case: Case) -> Measured:
    expert = case.tree.trajectories.occupancy(_demonstrations(case, case.tree), case.sft)
    return _agree(_same_objective(case.tree, case.sft, expert))


def _prop1_prompts(case: Case) -> Measured:
    return _same_objective(case.tree, case.sft, occupancy(case.single, case.expert))


def _prop1_terminal(case: Case) -> Measured:
    ends = torch.randn(case.tree.terminals, generator=case.generator(), dtype=torch.float64)
    return _same_objective(case.tree, case.sft, occupancy(case.tree, case.expert), terminal=ends)


def _prop1_discounted(case: Case) -> Measured:
    return _agree(_same_objective(case.tree, case.sft, occupancy(case.tree, case.expert, GAMMA), GAMMA))


def _prop1_undiscounted_occupancy(case: Case) -> Measured:
    expert = occupancy(case.tree, case.expert)
    measured = _same_objective(case.tree, case.sft, expert, GAMMA)
    lift = unbounded_below_gamma_one(case.tree, case.sft, expert, GAMMA, 1.0)
    expected = (1 - GAMMA) * (float(expert.sum()) - 1)
    return Measured(max(measured.residual, abs(lift - expected)), facts={**measured.facts, "lift": lift})


def _prop1_stochastic(case: Case) -> Measured:
    return _agree(_same_objective(case.chain, case.chain_q, occupancy(case.chain, case.chain_expert)))


def _prop1_stochastic_sampled(case: Case) -> Measured:
    expert = case.chain.trajectories.occupancy(_demonstrations(case, case.chain), case.chain_q)
    return _same_objective(case.chain, case.chain_q, expert)


CLAIMS = [
    TheoryClaim(
        "Gauge: J* ignores an offset c(s) of the logits",
        "so V and r of Eq. 4 are not identified: c(s) ~ N(0, 1) moves r by up to {most[reward]:.2g}, pi_SFT by 0",
        _gauge,
    ),
    TheoryClaim(
        "Section 4.3: pi_SFT is soft optimal for log pi_SFT",
        "with V = 0, and for r as well: what RL can gain under either comes from dropping the entropy term",
        _log_policy_is_its_own_optimum,
    ),
    TheoryClaim(
        "A.3: min over pi of L is Eq. 9", "for every Q at psi = 0, without appeal to the saddle", _inner_minimum
    ),
    TheoryClaim(
        "A.3: min over pi of L as printed",
        "<rho_E - rho_pi_Q, r> - sum_t E[V(s_t)] counts V at every step: a3_counter_example",
        _inner_minimum_as_printed,
    ),
    TheoryClaim(
        "Prop. 1 (A.4)", "values and gradients; the initial value cancels, the constant left over is 0", _prop1
    ),
    TheoryClaim(
        "Prop. 1 on finite demonstrations",
        "any weights of trajectories; rho_0 is that of the demonstrations",
        _prop1_sampled,
    ),
    TheoryClaim(
        "Prop. 1 parts where demonstrations and rho_0 differ",
        "by E_D[V(s_0)] - E_rho_0[V(s_0)] exactly, gradient included; up to {most[gap]:.2g}",
        _prop1_prompts,
    ),
    TheoryClaim("Prop. 1 parts where V(s_H) is not 0", "by -E[V(s_H)] exactly; up to {most[gap]:.2g}", _prop1_terminal),
    TheoryClaim(
        "Prop. 1 at gamma 0.9, discounted rho_E",
        "J* is still a likelihood, with weight gamma^t on token t: gamma = 1 is not what makes it one",
        _prop1_discounted,
    ),
    TheoryClaim(
        "Prop. 1 parts at gamma 0.9, the paper's rho_E",
        "by (1 - gamma) E[sum_{{t>0}} V(s_t)] exactly, up to {most[gap]:.2g}; J* then has no maximum",
        _prop1_undiscounted_occupancy,
    ),
    TheoryClaim(
        "Prop. 1 with stochastic transitions",
        "holds for an expert of the same MDP: flow is all that A.4 needs, not determinism",
        _prop1_stochastic,
    ),
    TheoryClaim(
        "Prop. 1 parts: stochastic, finite demonstrations",
        "by V times the flow's defect exactly, up to {most[gap]:.2g}, with E[V(s')] from the model",
        _prop1_stochastic_sampled,
    ),
]
