"""Exact policy gradients in the logits of a tabular policy, and the estimators that Algorithm 1 and SR draw from (A.8).

One trajectory's estimate is sum_t grad log pi(a_t | s_t) w_t, with w_t the return from t on (DPR) or of the whole (SR).
Expectation and variance are sums over all trajectories; returns and rewards are those of the training code, not copies.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dpr_core import rewards as formulas
from dpr_core.returns import reward_to_go
from dpr_core.theory.claim import Case, Measured, TheoryClaim, at_most, equal
from dpr_core.theory.soft_bellman import boltzmann, log_boltzmann, recovered_reward, relative_reward, soft_value
from dpr_core.theory.token_mdp import Mdp, expected_return, random_q, state_occupancy, token_tree

GAMMA = 0.9

TEMPERATURES = (0.5, 0.7, 1.3)


Credit = Literal["token", "sentence"]


def exact_gradient(mdp: Mdp, logits: Tensor, reward: Tensor, gamma: float = 1.0) -> Tensor:
    """The gradient of J_r(pi) = <rho_pi, r> in the logits, by the flow equations and not by trajectories (A.8)."""
    point = logits.detach().clone().requires_grad_()
    return torch.autograd.grad(expected_return(mdp, boltzmann(point), reward, gamma), point)[0]


def sft_rewards(mdp: Mdp, sft: Tensor, ref: Tensor) -> dict[str, Tensor]:
    """Table 2's three rewards along every trajectory, (N, H), by the functions that training uses (Eq. 4, Eq. 5)."""
    paths = mdp.trajectories
    log_sft, log_ref = paths.along(log_boltzmann(sft)), paths.along(log_boltzmann(ref))
    return {
        "DPR": formulas.baseline_relative(log_sft, log_ref),
        "w/V": formulas.with_value(log_sft, paths.along(soft_value(sft)), paths.mask),
        "wo/Baseline": formulas.without_baseline(log_sft),
    }


@dataclass(frozen=True)
class Estimator:
    """An estimator from one trajectory: each trajectory's estimate (N, S, A) and its probability (N,)."""

    estimates: Tensor
    probabilities: Tensor

    @property
    def mean(self) -> Tensor:
        """The expectation, (S, A)."""
        return torch.einsum("n,nsa->sa", self.probabilities, self.estimates)

    @property
    def variance(self) -> float:
        """The trace of the covariance."""
        square = (self.probabilities * self.estimates.square().sum((1, 2))).sum()
        return float(square - self.mean.square().sum())


def estimator(
    mdp: Mdp, logits: Tensor, rewards: Tensor, credit: Credit, gamma: float = 1.0, baseline: Tensor | None = None
) -> Estimator:
    """Algorithm 1's estimator (`token`) or SR's (`sentence`) for rewards along every trajectory (N, H).

    `baseline` (S,) is subtracted from every return. As in Algorithm 1, G_t discounts from t on; no gamma^t in front.
    """
    returns = reward_to_go(rewards, mdp.trajectories.mask, gamma)
    if credit == "sentence":
        returns = torch.where(mdp.trajectories.mask, returns[:, :1], 0)
    if baseline is not None:
        returns = returns - mdp.trajectories.along(baseline)
    return weighted_scores(mdp, logits, returns)


def weighted_scores(mdp: Mdp, logits: Tensor, weights: Tensor, drawn: Tensor | None = None) -> Estimator:
    """sum_t grad log pi(a_t | s_t) w_t for given weights (N, H); a softmax's score is the token's one-hot less pi.

    Trajectories are as likely as pi makes them, or as the policy of the logits `drawn` does.
    """
    paths, policy = mdp.trajectories, boltzmann(logits)
    scores = torch.eye(mdp.actions, dtype=torch.float64)[paths.actions] - policy[paths.states]
    scores = scores * torch.where(paths.mask, weights, 0)[:, :, None]
    estimates = torch.zeros(len(paths.ends), mdp.states, mdp.actions, dtype=torch.float64)
    rows = torch.arange(len(paths.ends))[:, None].expand_as(paths.states)
    estimates = estimates.index_put((rows, paths.states), scores, accumulate=True)
    return Estimator(estimates, paths.probabilities(policy if drawn is None else boltzmann(drawn)))


def discounted_estimator(mdp: Mdp, logits: Tensor, rewards: Tensor, gamma: float) -> Estimator:
    """Algorithm 1's estimator with the gamma^t that it leaves out: unbiased for the discounted return."""
    returns = reward_to_go(rewards, mdp.trajectories.mask, gamma)
    return weighted_scores(mdp, logits, returns * gamma ** torch.arange(returns.shape[1], dtype=torch.float64))


def discounted_parting(mdp: Mdp, logits: Tensor, sft: Tensor, gamma: float) -> Tensor:
    """What the discounted Algorithm 1 gradient under r = Q - V(s') has beyond the one under log pi_SFT.

    Their returns differ by V(s_t), a baseline, less (1 - gamma) sum_{k>t} gamma^(k-t-1) V(s_k), which depends on the
    actions and vanishes at gamma = 1 (A.8).
    """
    values = mdp.trajectories.along(soft_value(sft))
    later = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    tail = (1 - gamma) * reward_to_go(later, mdp.trajectories.mask, gamma)
    return weighted_scores(mdp, logits, -tail).mean


def state_value(mdp: Mdp, logits: Tensor, rewards: Tensor) -> Tensor:
    """E[G_t | s_t = s] under the policy, (S,), by enumeration: the usual baseline. 0 where the policy never goes."""
    paths = mdp.trajectories
    chance = torch.where(paths.mask, paths.probabilities(boltzmann(logits))[:, None], 0)
    returns = reward_to_go(rewards, paths.mask)
    total = torch.zeros(mdp.states, dtype=torch.float64)
    total = total.index_put((paths.states,), chance * returns, accumulate=True)
    visits = state_occupancy(mdp, boltzmann(logits))
    return torch.where(visits > 0, total / visits.clamp_min(1e-300), 0)


def variance_counter_example() -> tuple[float, float]:
    """The variances of DPR and SR where DPR's is the larger: the second token's reward takes back the first one's.

    Two tokens, two steps; the first token pays 3 unless it is EOS, the next one -3. Every trajectory's total is 0.
    """
    mdp = token_tree(2, 2)
    logits = torch.zeros(2, 2, dtype=torch.float64)
    rewards = mdp.trajectories.along(torch.tensor([[0.0, 3.0], [-3.0, -3.0]], dtype=torch.float64))
    token, sentence = (estimator(mdp, logits, rewards, credit).variance for credit in ("token", "sentence"))
    return token, sentence


def _log_policy_against_reward(case: Case) -> Measured:
    left = exact_gradient(case.tree, case.actor, log_boltzmann(case.sft))
    return equal(left, exact_gradient(case.tree, case.actor, recovered_reward(case.tree, case.sft)))


def _log_policy_against_reward_enumerated(case: Case) -> Measured:
    rewards = sft_rewards(case.tree, case.sft, case.ref)
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
    parting = discounted_parting(case.tree, case.actor, case.sft, GAMMA)
    return equal(log_policy - plain, -parting, gap=float(parting.abs().max()))


def _relative_against_with_value(case: Case) -> Measured:
    gradients = {
        name: estimator(case.tree, case.actor, rewards, "token").mean
        for name, rewards in sft_rewards(case.tree, case.sft, case.ref).items()
    }
    reference = exact_gradient(case.tree, case.actor, log_boltzmann(case.ref))
    left, right = gradients["DPR"].flatten(), gradients["w/V"].flatten()
    cosine = float(torch.nn.functional.cosine_similarity(left, right, 0))
    return equal(gradients["w/V"] - gradients["DPR"], reference, cosine=cosine)


def _unbiased(case: Case, credit: Credit) -> Measured:
    expected = exact_gradient(case.tree, case.actor, relative_reward(case.sft, case.ref))
    return equal(_estimate(case, credit).mean, expected)


def _estimate(case: Case, credit: Credit) -> Estimator:
    rewards = sft_rewards(case.tree, case.sft, case.ref)["DPR"]
    return estimator(case.tree, case.actor, rewards, credit)


def _tempered(case: Case) -> Measured:
    """d/dz of J(softmax(z / T)): the scores of softmax(z / T) by z are those by z / T, over T."""
    reward = relative_reward(case.sft, case.ref)
    returns = reward_to_go(case.tree.trajectories.along(reward), case.tree.trajectories.mask)
    worst, cosines = 0.0, []
    for temperature in TEMPERATURES:
        drawn = case.actor / temperature
        exact = exact_gradient(case.tree, drawn, reward) / temperature
        ours = weighted_scores(case.tree, drawn, returns).mean / temperature
        worst = max(worst, float((ours - exact).abs().max()))
        wrong = weighted_scores(case.tree, case.actor, returns, drawn).mean
        cosines.append(float(torch.cosine_similarity(wrong.flatten(), exact.flatten(), 0)))
    return Measured(worst, facts={"cosine": min(cosines)})


def _unbiased_discounted(case: Case) -> Measured:
    rewards = case.tree.trajectories.along(relative_reward(case.sft, case.ref))
    exact = exact_gradient(case.tree, case.actor, relative_reward(case.sft, case.ref), GAMMA)
    right = discounted_estimator(case.tree, case.actor, rewards, GAMMA).mean
    printed = estimator(case.tree, case.actor, rewards, "token", GAMMA).mean
    return equal(right, exact, gap=float((printed - exact).abs().max() / exact.abs().max()))


def _variance(case: Case) -> Measured:
    token, sentence = (_estimate(case, credit).variance for credit in ("token", "sentence"))
    return at_most([(token, sentence)], below=float(token <= sentence), ratio=token / sentence)


def _variance_of_rewards(case: Case) -> Measured:
    far = case.sft + random_q(case.tree, case.generator(), 3.0)
    pairs = []
    for ref in (case.ref, far):
        rewards = sft_rewards(case.tree, case.sft, ref)
        spread = [estimator(case.tree, case.sft, rewards[name], "token").variance for name in ("DPR", "wo/Baseline")]
        pairs.append((spread[0], spread[1]))
    (near, naive), (distant, _) = pairs
    return at_most(pairs, near=float(near <= naive), ratio=near / naive, far=float(distant <= naive))


CLAIMS = [
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
        "Rollouts at temperature 0.5, 0.7 and 1.3, scored there",
        "unbiased for the policy that draws; scored at 1, the cosine with its gradient is down to {least[cosine]:.2f}",
        _tempered,
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
]
