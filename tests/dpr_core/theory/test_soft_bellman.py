import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr_core.theory import soft_bellman
from dpr_core.theory.claim import SHAPES, Case, draw
from dpr_core.theory.soft_bellman import boltzmann, hard_q, log_boltzmann, recovered_reward, soft_q, soft_value
from dpr_core.theory.token_mdp import occupancy, random_policy, token_tree

CASES = st.builds(lambda seed, shape: draw(seed, *shape), st.integers(0, 10**6), st.sampled_from(SHAPES))

Q = torch.log(torch.tensor([[1.0, 3.0], [2.0, 1.0]], dtype=torch.float64))
"""On the tree of two tokens and two steps: V is (log 4, log 3), pi is (1/4, 3/4) and (2/3, 1/3)."""


def test_eq1_by_hand() -> None:
    assert soft_value(Q).tolist() == pytest.approx([math.log(4), math.log(3)])
    assert boltzmann(Q).flatten().tolist() == pytest.approx([1 / 4, 3 / 4, 2 / 3, 1 / 3])
    assert soft_value(Q, 0.5)[0].item() == pytest.approx(math.log(1 + 9) / 2)
    assert boltzmann(Q, 0.5)[0].tolist() == pytest.approx([1 / 10, 9 / 10])


def test_eq4_by_hand() -> None:
    tree = token_tree(2, 2)
    reward = recovered_reward(tree, Q)
    assert reward.flatten().tolist() == pytest.approx([0, 0, math.log(2), 0])
    assert soft_bellman.shaped_log_policy(tree, reward).exp().flatten().tolist() == pytest.approx(
        [1 / 4, 3 / 4, 2 / 3, 1 / 3]
    )


def test_returns_differ_by_minus_v() -> None:
    shift = soft_bellman.return_shift(token_tree(2, 2), Q)
    assert shift.flatten().tolist() == pytest.approx([-math.log(4), 0, *[-math.log(4), -math.log(3)] * 2])


def test_hard_q_by_hand() -> None:
    reward = torch.tensor([[1.0, 0.5], [0.0, 2.0]], dtype=torch.float64)
    assert hard_q(token_tree(2, 2), reward).tolist() == [[1.0, 2.5], [0.0, 2.0]]


def test_recovered_reward_with_a_discount() -> None:
    reward = recovered_reward(token_tree(2, 2), Q, gamma=0.5)
    assert reward[0].tolist() == pytest.approx([0, math.log(3) / 2])


@settings(max_examples=25, deadline=None)
@given(CASES, st.sampled_from([0.3, 1.0, 2.5]))
def test_no_policy_beats_the_boltzmann_policy(case: Case, beta: float) -> None:
    value = soft_value(case.sft, beta)
    assert torch.allclose(soft_bellman.regularised(case.sft, boltzmann(case.sft, beta), beta), value)
    other = random_policy(tuple(case.sft.shape), case.generator())
    assert (soft_bellman.regularised(case.sft, other, beta) < value).all()
    assert soft_bellman.eq1_gap(case.sft, other, beta).abs().max() < 1e-12


def test_the_sign_that_section_3_prints_does_not_lead_to_eq1() -> None:
    softmax, one_hot = soft_bellman.eq1_sign_counter_example()
    p = 1 / (1 + math.exp(-1))
    assert softmax == pytest.approx(p + p * math.log(p) + (1 - p) * math.log(1 - p))
    assert one_hot == 1.0 > softmax


@settings(max_examples=25, deadline=None)
@given(CASES, st.sampled_from([0.3, 1.0, 2.5]), st.sampled_from([1.0, 0.8]))
def test_reward_and_q_are_one_to_one(case: Case, beta: float, gamma: float) -> None:
    for mdp, q in ((case.tree, case.sft), (case.chain, case.chain_q)):
        assert torch.allclose(soft_q(mdp, recovered_reward(mdp, q, beta, gamma), beta, gamma), q)
    reward = recovered_reward(case.tree, case.sft, beta)
    assert torch.allclose(soft_bellman.shaped_log_policy(case.tree, reward, beta), log_boltzmann(case.sft, beta))


@settings(max_examples=15, deadline=None)
@given(CASES)
def test_the_soft_optimal_policy_of_the_whole_mdp(case: Case) -> None:
    """E[V(s_0)] is the most that <rho_pi, r> + H(pi) can reach, and pi_Q reaches it."""

    def objective(policy: torch.Tensor) -> float:
        rho = occupancy(case.tree, policy)
        return float((rho * (case.sft - torch.log(policy))).sum())

    q = soft_q(case.tree, case.sft)
    best = float((case.tree.initial * soft_value(q)).sum())
    assert objective(boltzmann(q)) == pytest.approx(best)
    assert objective(boltzmann(case.actor)) < best
