import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr_core import losses
from dpr_core.returns import reward_to_go
from dpr_core.theory import policy_gradient
from dpr_core.theory.claim import SHAPES, Case, draw
from dpr_core.theory.policy_gradient import Credit, estimator, exact_gradient
from dpr_core.theory.soft_bellman import boltzmann, log_boltzmann, recovered_reward, soft_value
from dpr_core.theory.token_mdp import expected_return, random_q, token_tree

CASES = st.builds(lambda seed, shape: draw(seed, *shape), st.integers(0, 10**6), st.sampled_from(SHAPES))

TREE = token_tree(2, 2)
LOGITS = torch.log(torch.tensor([[1.0, 3.0], [2.0, 1.0]], dtype=torch.float64))
REWARD = torch.tensor([[1.0, 1.0], [0.0, 2.0]], dtype=torch.float64)
"""pi is (1/4, 3/4) and (2/3, 1/3); responses: EOS pays 1, token 1 and EOS pay 1, token 1 twice pays 3."""


def test_gradient_and_variances_by_hand() -> None:
    expected = [-1 / 8, 1 / 8, -1 / 3, 1 / 3]
    assert exact_gradient(TREE, LOGITS, REWARD).flatten().tolist() == pytest.approx(expected)
    rewards = TREE.trajectories.along(REWARD)
    token, sentence = (estimator(TREE, LOGITS, rewards, credit) for credit in ("token", "sentence"))
    assert token.mean.flatten().tolist() == pytest.approx(expected)
    assert sentence.mean.flatten().tolist() == pytest.approx(expected)
    assert token.estimates[1].flatten().tolist() == pytest.approx([-1 / 4, 1 / 4, 0, 0])
    assert sentence.estimates[1].flatten().tolist() == pytest.approx([-1 / 4, 1 / 4, 1 / 3, -1 / 3])
    squared_mean = 2 / 64 + 2 / 9
    assert token.variance == pytest.approx(9 / 32 + 1 / 16 + 9 / 32 + 8 / 9 - squared_mean)
    assert sentence.variance == pytest.approx(9 / 32 + (1 / 8 + 2 / 9) / 2 + (9 / 8 + 8) / 4 - squared_mean)


@settings(max_examples=20, deadline=None)
@given(CASES, st.sampled_from([1.0, 0.8]))
def test_the_exact_gradient_against_finite_differences(case: Case, gamma: float) -> None:
    reward = random_q(case.tree, case.generator())
    slope = exact_gradient(case.tree, case.actor, reward, gamma)
    for s, a in ((0, 0), (case.tree.states - 1, 1)):
        step = torch.zeros_like(case.actor)
        step[s, a] = 1e-5
        up, down = (expected_return(case.tree, boltzmann(case.actor + x), reward, gamma) for x in (step, -step))
        assert slope[s, a].item() == pytest.approx(float(up - down) / 2e-5, abs=1e-8)


@settings(max_examples=20, deadline=None)
@given(CASES, st.sampled_from(["token", "sentence"]))
def test_both_estimators_are_unbiased(case: Case, credit: Credit) -> None:
    for mdp, logits in ((case.tree, case.actor), (case.chain, case.chain_q)):
        reward = random_q(mdp, case.generator())
        drawn = estimator(mdp, logits, mdp.trajectories.along(reward), credit)
        assert torch.allclose(drawn.mean, exact_gradient(mdp, logits, reward))
        assert drawn.variance > 0


@settings(max_examples=20, deadline=None)
@given(CASES)
def test_the_estimator_is_the_descent_direction_of_the_training_loss(case: Case) -> None:
    paths = case.tree.trajectories
    rewards = paths.along(log_boltzmann(case.sft) - log_boltzmann(case.ref))
    logits = case.actor.clone().requires_grad_()
    log_probs = torch.log_softmax(logits, -1)[paths.states, paths.actions]
    loss = torch.where(paths.mask, losses.reinforce(log_probs, reward_to_go(rewards, paths.mask)), 0).sum(1)
    expected_loss = paths.probabilities(boltzmann(case.actor)) @ loss
    descent = -torch.autograd.grad(expected_loss, logits)[0]
    assert torch.allclose(estimator(case.tree, case.actor, rewards, "token").mean, descent)


@settings(max_examples=20, deadline=None)
@given(CASES)
def test_a8_and_that_with_value_differs_by_a_state_baseline(case: Case) -> None:
    reward = recovered_reward(case.tree, case.sft)
    naive = exact_gradient(case.tree, case.actor, log_boltzmann(case.sft))
    assert torch.allclose(naive, exact_gradient(case.tree, case.actor, reward))
    rewards = policy_gradient.sft_rewards(case.tree, case.sft, case.ref)
    assert torch.allclose(rewards["w/V"], case.tree.trajectories.along(reward))
    baselined = estimator(case.tree, case.actor, rewards["w/V"], "token", baseline=soft_value(case.sft))
    assert torch.allclose(
        baselined.estimates, estimator(case.tree, case.actor, rewards["wo/Baseline"], "token").estimates
    )


@settings(max_examples=20, deadline=None)
@given(CASES, st.sampled_from([0.95, 0.5]))
def test_below_gamma_one_log_policy_and_reward_part_as_told(case: Case, gamma: float) -> None:
    paths = case.tree.trajectories
    naive = estimator(case.tree, case.actor, paths.along(log_boltzmann(case.sft)), "token", gamma).mean
    plain = estimator(case.tree, case.actor, paths.along(recovered_reward(case.tree, case.sft)), "token", gamma).mean
    parting = policy_gradient.discounted_parting(case.tree, case.actor, case.sft, gamma)
    assert torch.allclose(plain - naive, parting)
    assert (parting.abs().max() > 1e-6) == (case.horizon > 1)
    assert policy_gradient.discounted_parting(case.tree, case.actor, case.sft, 1.0).abs().max() == 0


@settings(max_examples=20, deadline=None)
@given(CASES)
def test_the_discounted_estimator_needs_its_gamma_to_the_t(case: Case) -> None:
    reward = log_boltzmann(case.sft) - log_boltzmann(case.ref)
    rewards = case.tree.trajectories.along(reward)
    exact = exact_gradient(case.tree, case.actor, reward, 0.5)
    assert torch.allclose(policy_gradient.discounted_estimator(case.tree, case.actor, rewards, 0.5).mean, exact)
    assert not torch.allclose(estimator(case.tree, case.actor, rewards, "token", 0.5).mean, exact, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(CASES)
def test_the_state_value_is_a_baseline_without_bias(case: Case) -> None:
    rewards = policy_gradient.sft_rewards(case.tree, case.sft, case.ref)["DPR"]
    value = policy_gradient.state_value(case.tree, case.actor, rewards)
    plain = estimator(case.tree, case.actor, rewards, "token")
    assert torch.allclose(estimator(case.tree, case.actor, rewards, "token", baseline=value).mean, plain.mean)
    reward = log_boltzmann(case.sft) - log_boltzmann(case.ref)
    start = (case.tree.initial * value).sum()
    assert torch.isclose(start, expected_return(case.tree, boltzmann(case.actor), reward))


def test_the_per_token_estimator_can_be_the_noisier_one() -> None:
    """DPR: 0 from the root, -3 after token 1: 9 times a score of square norm 1/2, half of the time. SR: nothing."""
    assert policy_gradient.variance_counter_example() == pytest.approx((9 * 0.5 * 0.5, 0))
