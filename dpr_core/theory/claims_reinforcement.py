"""Eq. 6 and appendices A.7 to A.11: what reinforcement under the recovered reward does."""

import torch
from torch import Tensor

from dpr_core.theory import bounds, eos, policy_gradient, shaping
from dpr_core.theory.cases import Case
from dpr_core.theory.claim import Measured, TheoryClaim, at_most, equal
from dpr_core.theory.policy_gradient import Credit, estimator, exact_gradient
from dpr_core.theory.soft_bellman import boltzmann, log_boltzmann, recovered_reward, soft_value
from dpr_core.theory.token_mdp import Mdp, expected_return, random_policy, random_q

GAMMA = 0.9
STOPS = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)


def _relative(case: Case) -> Tensor:
    return log_boltzmann(case.sft) - log_boltzmann(case.ref)


def _safe_improvement(case: Case) -> Measured:
    generator = case.generator()
    close = recovered_reward(case.tree, case.sft)
    pairs, tighter = [], []
    for spread in (0.01, 0.3, 3.0):
        proxy = close + random_q(case.tree, generator, spread)
        old, new = (random_policy(tuple(case.sft.shape), generator, 3.0) for _ in range(2))
        excess, bound, tight = bounds.safe_improvement_sides(case.tree, close, proxy, old, new)
        pairs += [(excess, bound), (excess, tight), (tight, bound)]
        tighter.append(tight / bound)
    old, new = boltzmann(case.sft), boltzmann(case.sft + 2 * _relative(case))
    real, proxy = recovered_reward(case.tree, case.sft), _relative(case)
    promised = float(expected_return(case.tree, new, proxy) - expected_return(case.tree, old, proxy))
    _, bound, _ = bounds.safe_improvement_sides(case.tree, real, proxy, old, new)
    return at_most(pairs, used=max(tighter), promises=float(promised > bound))


def _log_policy_against_reward(case: Case) -> Measured:
    left = exact_gradient(case.tree, case.actor, log_boltzmann(case.sft))
    return equal(left, exact_gradient(case.tree, case.actor, recovered_reward(case.tree, case.sft)))


def _log_policy_against_reward_enumerated(case: Case) -> Measured:
    rewards = policy_gradient.sft_rewards(case.tree, case.sft, case.ref)
    recovered = case.tree.trajectories.along(recovered_reward(case.tree, case.sft))
    log_policy = estimator(case.tree, case.actor, rewards["wo/Baseline"], "token")
    plain = estimator(case.tree, case.actor, recovered, "token")
    value = soft_value(case.sft)
    moved = case.tree.trajectories.along(recovered_reward(case.tree, case.sft + 10))
    lifted = estimator(case.tree, case.actor, moved, "token")
    corrected = estimator(case.tree, case.actor, recovered, "token", baseline=value)
    return Measured(
        max(
            float((log_policy.mean - plain.mean).abs().max()),
            float((log_policy.estimates - corrected.estimates).abs().max()),
            float((rewards["w/V"] - recovered).abs().max()),
        ),
        facts={"ratio": plain.variance / log_policy.variance, "lifted": lifted.variance / log_policy.variance},
    )


def _log_policy_stochastic(case: Case) -> Measured:
    logits = random_q(case.chain, case.generator())
    left = exact_gradient(case.chain, logits, log_boltzmann(case.chain_q))
    return equal(left, exact_gradient(case.chain, logits, recovered_reward(case.chain, case.chain_q)))


def _log_policy_discounted(case: Case) -> Measured:
    paths = case.tree.trajectories
    log_policy = estimator(case.tree, case.actor, paths.along(log_boltzmann(case.sft)), "token", GAMMA).mean
    plain = estimator(case.tree, case.actor, paths.along(recovered_reward(case.tree, case.sft)), "token", GAMMA).mean
    parting = policy_gradient.discounted_parting(case.tree, case.actor, case.sft, GAMMA)
    return equal(log_policy - plain, -parting, gap=float(parting.abs().max()))


def _relative_against_with_value(case: Case) -> Measured:
    gradients = {
        name: estimator(case.tree, case.actor, rewards, "token").mean
        for name, rewards in policy_gradient.sft_rewards(case.tree, case.sft, case.ref).items()
    }
    reference = exact_gradient(case.tree, case.actor, log_boltzmann(case.ref))
    left, right = gradients["DPR"].flatten(), gradients["w/V"].flatten()
    cosine = float(torch.nn.functional.cosine_similarity(left, right, 0))
    return equal(gradients["w/V"] - gradients["DPR"], reference, cosine=cosine)


def _unbiased(case: Case, credit: Credit) -> Measured:
    expected = exact_gradient(case.tree, case.actor, _relative(case))
    return equal(_estimate(case, credit).mean, expected)


def _estimate(case: Case, credit: Credit) -> policy_gradient.Estimator:
    rewards = policy_gradient.sft_rewards(case.tree, case.sft, case.ref)["DPR"]
    return estimator(case.tree, case.actor, rewards, credit)


def _unbiased_discounted(case: Case) -> Measured:
    rewards = case.tree.trajectories.along(_relative(case))
    exact = exact_gradient(case.tree, case.actor, _relative(case), GAMMA)
    right = policy_gradient.discounted_estimator(case.tree, case.actor, rewards, GAMMA).mean
    printed = estimator(case.tree, case.actor, rewards, "token", GAMMA).mean
    return equal(right, exact, gap=float((printed - exact).abs().max() / exact.abs().max()))


def _variance(case: Case) -> Measured:
    token, sentence = (_estimate(case, credit).variance for credit in ("token", "sentence"))
    return at_most([(token, sentence)], below=float(token <= sentence), ratio=token / sentence)


def _variance_of_rewards(case: Case) -> Measured:
    far = case.sft + random_q(case.tree, case.generator(), 3.0)
    pairs = []
    for ref in (case.ref, far):
        rewards = policy_gradient.sft_rewards(case.tree, case.sft, ref)
        spread = [estimator(case.tree, case.sft, rewards[name], "token").variance for name in ("DPR", "wo/Baseline")]
        pairs.append((spread[0], spread[1]))
    (near, naive), (distant, _) = pairs
    return at_most(pairs, near=float(near <= naive), ratio=near / naive, far=float(distant <= naive))


def _relative_shift(case: Case) -> Measured:
    shift, value = bounds.relative_shift(case.tree, case.sft, case.ref)
    return equal(shift, value)


def _relative_shift_bound(case: Case) -> Measured:
    shift, _ = bounds.relative_shift(case.tree, case.sft, case.ref)
    return at_most([(float(shift.abs().max()), bounds.norm(soft_value(case.sft) - soft_value(case.ref), "linf"))])


def _a9_as_printed(case: Case) -> Measured:
    return Measured(bounds.a9_gap_as_printed(case.tree, case.sft, case.ref))


def _dynamic_range(case: Case) -> Measured:
    moved = case.sft + 10, case.ref + 10
    sides = [bounds.dynamic_range_sides(case.tree, *pair) for pair in ((case.sft, case.ref), moved)]
    naive = [(promised, naive) for promised, naive, _ in sides]
    return at_most(naive, kept=float(sides[0][0] <= sides[0][1]), kept_v=float(sides[0][0] <= sides[0][2]))


def _potential(case: Case) -> Tensor:
    return torch.randn(case.tree.states, generator=case.generator(), dtype=torch.float64)


def _shaping(case: Case) -> Measured:
    gap = shaping.policy_gap(case.tree, case.sft, _potential(case))
    return Measured(max(gap, shaping.soft_value_gap(case.tree, case.sft, _potential(case))))


def _shaping_at_ends(case: Case) -> Measured:
    ends = torch.randn(case.tree.terminals, generator=case.generator(1), dtype=torch.float64)
    return Measured(shaping.policy_gap(case.tree, case.sft, _potential(case), ends))


def _shaping_as_printed(case: Case) -> Measured:
    return Measured(shaping.a10_gap_as_printed(case.tree, case.sft, _potential(case)))


def _likely_eos(case: Case, spread: float = 1.0) -> Tensor:
    margin = spread * torch.rand(case.tree.states, generator=case.generator(), dtype=torch.float64)
    return eos.with_eos(case.sft, margin)


def _immediate_eos(case: Case) -> Measured:
    prompt_only = torch.where(case.tree.initial[:, None] > 0, _likely_eos(case), case.sft)
    leads = [eos.immediate_eos_lead(case.single, log_boltzmann(q)) for q in (_likely_eos(case), prompt_only)]
    relative = _likely_eos(case), eos.with_eos(case.ref, torch.zeros(case.tree.states, dtype=torch.float64) - 0.5)
    still = eos.immediate_eos_lead(case.single, log_boltzmann(relative[0]) - log_boltzmann(relative[1]))
    return Measured(-min(leads), facts={"least": min(leads), "relative": float(still > 0)})


def _eos_elsewhere(case: Case) -> Measured:
    likely, unlikely = _likely_eos(case), eos.with_eos(case.sft, torch.full((case.tree.states,), -3.0).double())
    q = torch.where(case.tree.initial[:, None] > 0, unlikely, likely)
    return Measured(-eos.immediate_eos_lead(case.single, log_boltzmann(q)))


def _naive_is_the_mode(case: Case) -> Measured:
    best = eos.best_return(case.single, log_boltzmann(case.sft))
    lead = eos.immediate_eos_lead(case.single, log_boltzmann(case.sft))
    likeliest = float(case.sft[0].argmax() == 0)
    return equal(best, eos.log_mode(case.single, case.sft), empty=float(lead > 0), premise=likeliest)


def _baseline_removes_it(case: Case) -> Measured:
    lead = eos.immediate_eos_lead(case.single, _relative(case))
    return Measured(lead, facts={"still": float(lead > 0)})


def _kl(case: Case) -> Measured:
    divergence = eos.kl(case.sft, case.ref)
    measured = equal(eos.expected_relative_reward(case.sft, case.ref), divergence)
    return Measured(max(measured.residual, float(-divergence.min())), facts={"kl": float(divergence.mean())})


def _prefixes_grow(case: Case) -> Measured:
    policy = boltzmann(case.sft)
    relative = eos.prefix_returns(case.tree, policy, _relative(case))
    naive = eos.prefix_returns(case.tree, policy, log_boltzmann(case.sft))
    falls = max(float((relative[:-1] - relative[1:]).max()), float((naive[1:] - naive[:-1]).max()), -float(relative[0]))
    return Measured(falls, facts={"whole": float(relative[-1]), "naive": float(naive[-1])})


def _length_bias_cancels(case: Case) -> Measured:
    relative = eos.prefix_returns(case.tree, boltzmann(case.sft), _relative(case))
    return equal(relative, 0.0)


def _by_stopping(mdp: Mdp, case: Case) -> tuple[Tensor, Tensor]:
    ref = eos.same_eos(case.sft, case.ref)
    relative = log_boltzmann(case.sft) - log_boltzmann(ref)
    returns = eos.return_by_stopping(mdp, case.sft, relative, STOPS)
    return returns, eos.return_by_stopping(mdp, case.sft, log_boltzmann(case.sft), STOPS)


def _longer_pays(case: Case) -> Measured:
    returns, naive = _by_stopping(case.tree, case)
    rises = float((returns[1:] - returns[:-1]).max())
    return Measured(rises, facts={"gain": float(returns[0] - returns[-1]), "naive": float(naive[0] - naive[-1])})


CLAIMS = [
    TheoryClaim(
        "Eq. 6 (A.7)",
        "||rho' - rho||_1 reaches {most[used]:.0%} of its 2H; with r of w/V, r_hat of DPR and a step towards r_hat "
        "the bound promises a gain in {mean[promises]:.0%} of the instances",
        _safe_improvement,
    ),
    TheoryClaim(
        "A.8: exact gradients under log pi_SFT and r", "through the flow equations", _log_policy_against_reward
    ),
    TheoryClaim(
        "A.8: w/V is wo/Baseline less a state baseline",
        "on every trajectory, with the training code's rewards: one expected gradient, so Table 2's two rows share an "
        "optimum. V multiplies the variance by {mean[ratio]:.2g} on average, by {mean[lifted]:.2g} with logits + 10",
        _log_policy_against_reward_enumerated,
    ),
    TheoryClaim(
        "A.8 with stochastic transitions",
        "r = Q - E[V(s')]: in expectation the shift is still a baseline",
        _log_policy_stochastic,
    ),
    TheoryClaim(
        "A.8 parts at gamma 0.9",
        "exactly by (1 - gamma) sum_{{k>t}} gamma^(k-t-1) V(s_k), no baseline; up to {most[gap]:.2g}",
        _log_policy_discounted,
    ),
    TheoryClaim(
        "w/V less DPR is the gradient under log pi_ref",
        "not shaping alone: w/V has no reference. The cosine of the two gradients is {mean[cosine]:.2f} on average",
        _relative_against_with_value,
    ),
    TheoryClaim(
        "Algorithm 1's estimator is unbiased",
        "against the gradient of <rho_pi, r_hat>",
        lambda case: _unbiased(case, "token"),
    ),
    TheoryClaim(
        "SR's estimator is unbiased",
        "the same gradient: they differ in variance alone",
        lambda case: _unbiased(case, "sentence"),
    ),
    TheoryClaim(
        "Algorithm 1 at gamma 0.9, with gamma^t put back",
        "unbiased; as printed it is off by up to {most[gap]:.0%} of the largest component",
        _unbiased_discounted,
    ),
    TheoryClaim(
        "Variance: DPR at most SR",
        "in {mean[below]:.0%} of the instances, DPR / SR {mean[ratio]:.2f} on average: variance_counter_example",
        _variance,
    ),
    TheoryClaim(
        "Variance: the baseline reduces it (section 4.3)",
        "at pi = pi_SFT against log pi_SFT: in {mean[near]:.0%} of the instances ({mean[ratio]:.2g} times) for a "
        "pi_ref near pi_SFT, in {mean[far]:.0%} for one far from it",
        _variance_of_rewards,
    ),
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
    TheoryClaim(
        "A.11: immediate EOS wins without the baseline",
        "EOS the likeliest token; in the first state suffices. Least lead {least[least]:.2g}",
        _immediate_eos,
    ),
    TheoryClaim(
        "A.11 on a subset that leaves out the first state",
        "EOS likeliest everywhere else does not make it win: a11_counter_example",
        _eos_elsewhere,
    ),
    TheoryClaim(
        "A.11 made exact: J_naive's optimum is pi_SFT's mode",
        "the empty response in {mean[empty]:.0%} of random instances; A.11's premise, in the first state, is true of "
        "{mean[premise]:.0%}",
        _naive_is_the_mode,
    ),
    TheoryClaim(
        "Section 4.3: the baseline removes the EOS pathology",
        "immediate EOS still has the largest r_hat in {mean[still]:.0%}: relative_eos_counter_example",
        _baseline_removes_it,
    ),
    TheoryClaim("E_SFT[r_hat | s] = KL(pi_SFT || pi_ref) >= 0", "{mean[kl]:.2g} a token on average", _kl),
    TheoryClaim(
        "E_SFT of the first k tokens grows with k",
        "under r_hat, to {mean[whole]:.2g}; it falls under log pi_SFT, to {mean[naive]:.2g}",
        _prefixes_grow,
    ),
    TheoryClaim(
        "Section 4.3: the baseline cancels length bias",
        "it turns it round, see the two rows above",
        _length_bias_cancels,
    ),
    TheoryClaim(
        "Longer pays under r_hat",
        "pi_ref stopping as often as pi_SFT: lowering the chance to stop from 0.95 to 0.05 gains {mean[gain]:.2g} on "
        "average under r_hat, and {mean[naive]:.2g} under log pi_SFT",
        _longer_pays,
    ),
]
