"""Eq. 1 to Prop. 1 and Theorem 2: what SFT recovers, and how far it is off."""

from collections.abc import Callable

import torch

from dpr_core.theory import bounds, iq_learn, soft_bellman
from dpr_core.theory.bounds import Norm
from dpr_core.theory.cases import Case
from dpr_core.theory.claim import Measured, TheoryClaim, at_most, equal
from dpr_core.theory.soft_bellman import boltzmann, log_boltzmann, recovered_reward, soft_q, soft_value
from dpr_core.theory.token_mdp import Mdp, occupancy, random_policy

GAMMA = 0.9
BETAS = (0.5, 1.0, 2.0)


def _eq1(case: Case) -> Measured:
    other = random_policy(tuple(case.sft.shape), case.generator())
    gaps = [
        soft_bellman.eq1_gap(case.sft, policy, beta) for beta in BETAS for policy in (other, boltzmann(case.sft, beta))
    ]
    return equal(torch.stack(gaps), 0.0)


def _eq1_as_printed(case: Case) -> Measured:
    one_hots = torch.eye(case.vocabulary, dtype=torch.float64)
    best = torch.stack([soft_bellman.regularised(case.sft, row.expand_as(case.sft), -1.0) for row in one_hots]).amax(0)
    return Measured(float((best - soft_bellman.regularised(case.sft, boltzmann(case.sft), -1.0)).max()))


def _eq4(case: Case) -> Measured:
    gaps = []
    for beta in BETAS:
        reward = recovered_reward(case.tree, case.sft, beta)
        gaps.append(soft_bellman.shaped_log_policy(case.tree, reward, beta) - log_boltzmann(case.sft, beta))
        gaps.append(soft_q(case.tree, reward, beta) - case.sft)
    return equal(torch.stack(gaps), 0.0)


def _gauge(case: Case) -> Measured:
    offset = torch.randn(case.tree.states, generator=case.generator(), dtype=torch.float64)
    moved, reward = iq_learn.gauge_gap(case.tree, case.sft, offset, occupancy(case.tree, case.expert))
    return equal(moved, 0.0, reward=reward)


def _log_policy_is_its_own_optimum(case: Case) -> Measured:
    q = soft_q(case.tree, log_boltzmann(case.sft))
    return equal(torch.cat([(boltzmann(q) - boltzmann(case.sft)).flatten(), soft_value(q)]), 0.0)


def _shift(case: Case) -> Measured:
    return equal(soft_bellman.return_shift(case.tree, case.sft), -case.tree.trajectories.along(soft_value(case.sft)))


def _shift_stochastic(case: Case) -> Measured:
    paths = case.chain.trajectories
    pathwise = soft_bellman.return_shift(case.chain, case.chain_q) + paths.along(soft_value(case.chain_q))
    chance = paths.probabilities(case.chain_expert)[:, None]
    mean = torch.zeros(case.chain.states, dtype=torch.float64).index_put(
        (paths.states,), torch.where(paths.mask, chance * pathwise, 0), accumulate=True
    )
    return equal(mean, 0.0, path=float(pathwise.abs().max()))


def _inner_minimum(case: Case) -> Measured:
    reward, expert = recovered_reward(case.tree, case.sft), occupancy(case.tree, case.expert)
    direct = iq_learn.irl_objective(case.tree, boltzmann(case.sft), reward, expert)
    worse = iq_learn.irl_objective(case.tree, boltzmann(case.actor), reward, expert)
    values = torch.stack(
        [iq_learn.inner_minimum(case.tree, reward, expert), iq_learn.j_star(case.tree, case.sft, expert)]
    )
    return Measured(max(float((values - direct).abs().max()), float(direct - worse)))


def _inner_minimum_as_printed(case: Case) -> Measured:
    reward, expert = recovered_reward(case.tree, case.sft), occupancy(case.tree, case.expert)
    printed = iq_learn.inner_minimum_as_printed(case.tree, reward, expert)
    return equal(printed, iq_learn.inner_minimum(case.tree, reward, expert))


def _same_objective(
    mdp: Mdp, q: torch.Tensor, expert: torch.Tensor, gamma: float = 1.0, terminal: torch.Tensor | None = None
) -> Measured:
    """J* less the likelihood against `telescoped`, value and gradient; the fact `gap` is how far the two part."""
    parts: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda at: iq_learn.j_star(mdp, at, expert, gamma, terminal),
        lambda at: iq_learn.log_likelihood(at, expert),
        lambda at: iq_learn.telescoped(mdp, at, expert, gamma, terminal),
    ]
    values = [part(q) for part in parts]
    slopes = [iq_learn.gradient(part, q) for part in parts]
    slope_gap = slopes[0] - slopes[1]
    gap = max(float((values[0] - values[1]).abs()), float(slope_gap.abs().max()))
    residual = max(
        float((values[0] - values[1] - values[2]).abs()),
        float((slope_gap - slopes[2]).abs().max()),
        float((slopes[1] - iq_learn.likelihood_gradient(q, expert)).abs().max()),
    )
    return Measured(residual, facts={"gap": gap})


def _agree(measured: Measured) -> Measured:
    return Measured(max(measured.residual, measured.facts["gap"]))


def _prop1(case: Case) -> Measured:
    return _agree(_same_objective(case.tree, case.sft, occupancy(case.tree, case.expert)))


def _demonstrations(case: Case, mdp: Mdp) -> torch.Tensor:
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
    lift = iq_learn.unbounded_below_gamma_one(case.tree, case.sft, expert, GAMMA, 1.0)
    expected = (1 - GAMMA) * (float(expert.sum()) - 1)
    return Measured(max(measured.residual, abs(lift - expected)), facts={**measured.facts, "lift": lift})


def _prop1_stochastic(case: Case) -> Measured:
    return _agree(_same_objective(case.chain, case.chain_q, occupancy(case.chain, case.chain_expert)))


def _prop1_stochastic_sampled(case: Case) -> Measured:
    expert = case.chain.trajectories.occupancy(_demonstrations(case, case.chain), case.chain_q)
    return _same_objective(case.chain, case.chain_q, expert)


def _theorem2(case: Case, name: Norm, truth: str, anchor: str) -> Measured:
    """`truth`: r* is psi's `minimum`, as rho_pi* = rho_E makes it, or the true `saddle`; `anchor`: rho_E or rho_pi*."""
    expert = occupancy(case.tree, case.expert)
    psi = bounds.random_regulariser(expert.numel(), case.generator())
    best, own = bounds.saddle(case.tree, psi, expert) if truth == "saddle" else (psi.centre, expert)
    near = 0.95 * case.expert + 0.05 * boltzmann(case.actor)
    pairs = [
        bounds.theorem2_sides(psi, expert, occupancy(case.tree, policy), best, own if anchor == "own" else expert, name)
        for policy in (boltzmann(case.actor), near)
    ]
    return at_most(pairs, apart=float((own - expert).abs().sum()))


def _occupancies_match(case: Case) -> Measured:
    expert = occupancy(case.tree, case.expert)
    psi = bounds.random_regulariser(expert.numel(), case.generator())
    best, own = bounds.saddle(case.tree, psi, expert)
    slope = float((expert.flatten() - own.flatten() - psi.gradient(best)).abs().max())
    _, weak = bounds.saddle(case.tree, psi.scaled(1e-3), expert)
    return equal(own, expert, slope=slope, weak=float((weak - expert).abs().max()))


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
    *(
        TheoryClaim(
            f"Theorem 2 where rho_pi* = rho_E, {name}/{bounds.DUAL[name]}",
            "r* is then the minimum of psi, whatever the expert does",
            lambda case, name=name: _theorem2(case, name, "minimum", "expert"),  # type: ignore[misc]
        )
        for name in bounds.DUAL
    ),
    TheoryClaim(
        "Eq. 2: occupancies match at the saddle",
        "not for a strongly convex psi, where grad psi(r*) = rho_E - rho_pi* (to {most[slope]:.0e} here). At "
        "psi / 1000 they differ by up to {most[weak]:.1g} and Theorem 2's 1/mu is 1000 times larger; at "
        "Prop. 1's psi = 0 it says nothing",
        _occupancies_match,
    ),
    TheoryClaim(
        "Theorem 2 as stated, at the true saddle",
        "||rho_pi* - rho_E||_1 is {mean[apart]:.2g} on average: theorem2_counter_example",
        lambda case: _theorem2(case, "l2", "saddle", "expert"),
    ),
    *(
        TheoryClaim(
            f"Theorem 2 repaired, {name}/{bounds.DUAL[name]}",
            "at the true saddle, with rho_pi* in place of rho_E",
            lambda case, name=name: _theorem2(case, name, "saddle", "own"),  # type: ignore[misc]
        )
        for name in bounds.DUAL
    ),
]
