import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr_core.theory import eos
from dpr_core.theory.claim import SHAPES, Case, draw
from dpr_core.theory.soft_bellman import boltzmann, log_boltzmann
from dpr_core.theory.token_mdp import expected_return, token_tree

CASES = st.builds(lambda seed, shape: draw(seed, *shape), st.integers(0, 10**6), st.sampled_from(SHAPES))

TREE = token_tree(2, 2)
SFT = torch.log(torch.tensor([[1 / 4, 3 / 4], [2 / 3, 1 / 3]], dtype=torch.float64))
REF = torch.log(torch.tensor([[1 / 2, 1 / 2], [1 / 2, 1 / 2]], dtype=torch.float64))


def test_eos_is_put_a_margin_above_the_best_other_token() -> None:
    q = torch.tensor([[9.0, 1.0, 2.0]], dtype=torch.float64)
    assert eos.with_eos(q, torch.tensor([0.5], dtype=torch.float64)).tolist() == [[2.5, 1.0, 2.0]]


def test_leads_and_modes_by_hand() -> None:
    """log pi of the responses: log 1/4, log 1/2, log 1/4."""
    assert eos.immediate_eos_lead(TREE, SFT) == pytest.approx(math.log(1 / 4) - math.log(1 / 2))
    assert eos.log_mode(TREE, SFT) == pytest.approx(math.log(1 / 2))
    assert eos.best_return(TREE, SFT) == pytest.approx(math.log(1 / 2))


def test_the_expected_relative_reward_by_hand() -> None:
    expected = [
        1 / 4 * math.log(1 / 2) + 3 / 4 * math.log(3 / 2),
        2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3),
    ]
    assert eos.expected_relative_reward(SFT, REF).tolist() == pytest.approx(expected)
    assert eos.kl(SFT, REF).tolist() == pytest.approx(expected)
    prefixes = eos.prefix_returns(TREE, boltzmann(SFT), SFT - REF)
    assert prefixes.tolist() == pytest.approx([expected[0], expected[0] + 3 / 4 * expected[1]])


@settings(max_examples=25, deadline=None)
@given(CASES, st.floats(0, 3))
def test_a11_under_its_premise(case: Case, margin: float) -> None:
    q = eos.with_eos(case.sft, torch.full((case.tree.states,), margin).double())
    assert eos.immediate_eos_lead(case.single, log_boltzmann(q)) > 0
    q[case.tree.initial == 0] = case.sft[case.tree.initial == 0]
    assert eos.immediate_eos_lead(case.single, log_boltzmann(q)) > 0


@settings(max_examples=25, deadline=None)
@given(CASES)
def test_without_a_baseline_the_best_return_is_the_mode(case: Case) -> None:
    best = eos.best_return(case.single, log_boltzmann(case.sft))
    assert best == pytest.approx(eos.log_mode(case.single, case.sft))
    for policy in (case.expert, boltzmann(case.sft)):
        assert float(expected_return(case.single, policy, log_boltzmann(case.sft))) < best


def test_the_premise_everywhere_but_at_first_is_not_enough() -> None:
    assert eos.a11_counter_example() == pytest.approx((math.log(0.1), math.log(0.81)))


def test_immediate_eos_can_win_with_the_baseline_too() -> None:
    assert eos.relative_eos_counter_example() == pytest.approx((math.log(2), math.log(8 / 7)))


@settings(max_examples=25, deadline=None)
@given(CASES)
def test_a_token_of_pi_sft_earns_the_kl_and_so_length_earns_more(case: Case) -> None:
    divergence = eos.kl(case.sft, case.ref)
    assert (divergence >= 0).all()
    assert torch.allclose(eos.expected_relative_reward(case.sft, case.ref), divergence)
    relative = log_boltzmann(case.sft) - log_boltzmann(case.ref)
    assert (eos.prefix_returns(case.tree, boltzmann(case.sft), relative).diff() > 0).all()
    assert (eos.prefix_returns(case.tree, boltzmann(case.sft), log_boltzmann(case.sft)).diff() < 0).all()
    assert (eos.prefix_returns(case.tree, boltzmann(case.ref), relative).diff() < 0).all()


@settings(max_examples=25, deadline=None)
@given(CASES)
def test_with_equal_eos_stopping_less_never_hurts_under_the_relative_reward(case: Case) -> None:
    ref = eos.same_eos(case.sft, case.ref)
    assert torch.allclose(boltzmann(ref)[:, 0], boltzmann(case.sft)[:, 0])
    assert torch.allclose(boltzmann(ref).sum(-1), torch.ones(case.tree.states).double())
    relative = log_boltzmann(case.sft) - log_boltzmann(ref)
    returns = eos.return_by_stopping(case.tree, case.sft, relative, (0.1, 0.5, 0.9))
    assert (returns.diff() <= 1e-12).all()
    if case.vocabulary > 2:
        assert returns[0] > returns[-1] + 1e-4


def test_the_policy_that_stops_at_a_given_rate() -> None:
    policy = eos.stopping_with(torch.log(torch.tensor([[5.0, 1.0, 3.0]], dtype=torch.float64)), 0.2)
    assert policy[0].tolist() == pytest.approx([0.2, 0.2, 0.6])
