import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr_core.theory import iq_learn
from dpr_core.theory.claim import SHAPES, Case, draw
from dpr_core.theory.iq_learn import gradient, j_star, log_likelihood
from dpr_core.theory.token_mdp import Mdp, occupancy, random_policy, token_tree

CASES = st.builds(lambda seed, shape: draw(seed, *shape), st.integers(0, 10**6), st.sampled_from(SHAPES))

TREE = token_tree(2, 2)
Q = torch.log(torch.tensor([[1.0, 3.0], [2.0, 1.0]], dtype=torch.float64))
DEMONSTRATION = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
"""One response: token 1, then EOS. pi gives it 3/4 times 2/3."""


def test_proposition_1_by_hand() -> None:
    assert j_star(TREE, Q, DEMONSTRATION).item() == pytest.approx(math.log(1 / 2))
    assert log_likelihood(Q, DEMONSTRATION).item() == pytest.approx(math.log(1 / 2))
    slope = gradient(lambda q: j_star(TREE, q, DEMONSTRATION), Q)
    assert slope.flatten().tolist() == pytest.approx([-1 / 4, 1 / 4, 1 / 3, -1 / 3])


def test_gamma_one_half_by_hand() -> None:
    halved = DEMONSTRATION * torch.tensor([[1.0], [0.5]], dtype=torch.float64)
    assert j_star(TREE, Q, halved, 0.5).item() == pytest.approx(math.log(3 / 4) + 0.5 * math.log(2 / 3))
    parted = j_star(TREE, Q, DEMONSTRATION, 0.5) - log_likelihood(Q, DEMONSTRATION)
    assert parted.item() == pytest.approx(0.5 * math.log(3))


def test_the_value_of_the_end_is_what_is_left_over() -> None:
    ends = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    left = j_star(TREE, Q, DEMONSTRATION, terminal=ends) - log_likelihood(Q, DEMONSTRATION)
    assert left.item() == pytest.approx(-2.0)


def _by_paths(mdp: Mdp, q: list[list[float]], expert: list[list[float]], gamma: float) -> float:
    """J* in plain Python: the expectation over trajectories of sum_t gamma^t (Q - gamma V(s')) - V(s_0)."""
    paths = mdp.trajectories
    value = [math.log(sum(math.exp(x) for x in row)) for row in q]
    total = 0.0
    for states, actions, mask, chance in zip(
        paths.states.tolist(), paths.actions.tolist(), paths.mask.tolist(), paths.dynamics.tolist(), strict=True
    ):
        length = sum(mask)
        inner = -value[states[0]]
        for t in range(length):
            chance *= expert[states[t]][actions[t]]
            later = value[states[t + 1]] if t + 1 < length else 0.0
            inner += gamma**t * (q[states[t]][actions[t]] - gamma * later)
        total += chance * inner
    return total


@settings(max_examples=12, deadline=None)
@given(CASES, st.sampled_from([1.0, 0.8]))
def test_value_and_gradient_against_plain_python_and_finite_differences(case: Case, gamma: float) -> None:
    for mdp, q, policy in ((case.tree, case.sft, case.expert), (case.chain, case.chain_q, case.chain_expert)):
        expert, told = occupancy(mdp, policy, gamma), policy.tolist()
        assert j_star(mdp, q, expert, gamma).item() == pytest.approx(_by_paths(mdp, q.tolist(), told, gamma))
        slope = gradient(lambda at, m=mdp, e=expert: j_star(m, at, e, gamma), q)  # type: ignore[misc]
        for s, a in ((0, 0), (mdp.states // 2, 1), (mdp.states - 1, mdp.actions - 1)):
            sides = []
            for step in (1e-5, -1e-5):
                moved = q.tolist()
                moved[s][a] += step
                sides.append(_by_paths(mdp, moved, told, gamma))
            assert slope[s, a].item() == pytest.approx((sides[0] - sides[1]) / 2e-5, abs=1e-8)


def _agree(
    left: Callable[[torch.Tensor], torch.Tensor], right: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor
) -> None:
    assert torch.isclose(left(at), right(at))
    assert torch.allclose(gradient(left, at), gradient(right, at))


@settings(max_examples=25, deadline=None)
@given(CASES)
def test_proposition_1_with_values_and_gradients(case: Case) -> None:
    expert = occupancy(case.tree, case.expert)
    _agree(lambda q: j_star(case.tree, q, expert), lambda q: log_likelihood(q, expert), case.sft)
    slope = gradient(lambda q: log_likelihood(q, expert), case.sft)
    assert torch.allclose(slope, iq_learn.likelihood_gradient(case.sft, expert))


@settings(max_examples=25, deadline=None)
@given(CASES, st.sampled_from([1.0, 0.9, 0.5]))
def test_what_telescoping_leaves_for_any_weights_at_all(case: Case, gamma: float) -> None:
    for mdp, q in ((case.tree, case.sft), (case.chain, case.chain_q)):
        weights = random_policy(tuple(q.shape), case.generator()) + 1
        ends = torch.randn(mdp.terminals, generator=case.generator(1), dtype=torch.float64)
        _agree(
            lambda at, m=mdp, w=weights, e=ends: j_star(m, at, w, gamma, e) - log_likelihood(at, w),  # type: ignore[misc]
            lambda at, m=mdp, w=weights, e=ends: iq_learn.telescoped(m, at, w, gamma, e),  # type: ignore[misc]
            q,
        )


@settings(max_examples=15, deadline=None)
@given(CASES)
def test_the_inner_minimum_is_attained_by_the_boltzmann_policy_alone(case: Case) -> None:
    expert = occupancy(case.tree, case.expert)
    least = float(iq_learn.inner_minimum(case.tree, case.sft, expert))
    policy = torch.softmax(iq_learn.soft_q(case.tree, case.sft), -1)
    assert float(iq_learn.irl_objective(case.tree, policy, case.sft, expert)) == pytest.approx(least)
    for other in (case.expert, torch.softmax(case.actor, -1)):
        assert float(iq_learn.irl_objective(case.tree, other, case.sft, expert)) > least


def test_what_a3_prints_is_another_number() -> None:
    right, printed = iq_learn.a3_counter_example()
    log_partition = math.log(math.e + 1)
    assert right == pytest.approx(1 - log_partition)
    assert printed == pytest.approx(1 - math.e / (math.e + 1) - log_partition)


def test_no_maximum_at_gamma_below_one_with_the_papers_occupancy() -> None:
    gains = [iq_learn.unbounded_below_gamma_one(TREE, Q, DEMONSTRATION, 0.9, lift) for lift in (1.0, 10.0, 1000.0)]
    assert gains == pytest.approx([0.1, 1.0, 100.0])
    assert iq_learn.unbounded_below_gamma_one(TREE, Q, DEMONSTRATION, 1.0, 1000.0) == pytest.approx(0)


def test_an_offset_of_the_logits_moves_the_reward_and_nothing_else() -> None:
    moved, reward = iq_learn.gauge_gap(TREE, Q, torch.tensor([0.0, 5.0], dtype=torch.float64), DEMONSTRATION)
    assert moved == pytest.approx(0)
    assert reward == pytest.approx(5)
