import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr_core.theory import shaping
from dpr_core.theory.claim import SHAPES, Case, draw
from dpr_core.theory.soft_bellman import boltzmann, log_boltzmann, recovered_reward, soft_q, soft_value
from dpr_core.theory.token_mdp import expected_return, token_tree

CASES = st.builds(lambda seed, shape: draw(seed, *shape), st.integers(0, 10**6), st.sampled_from(SHAPES))


def _potential(case: Case) -> torch.Tensor:
    return torch.randn(case.tree.states, generator=case.generator(), dtype=torch.float64)


def test_a_shaped_reward_by_hand() -> None:
    reward = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    potential = torch.tensor([10.0, 30.0], dtype=torch.float64)
    assert shaping.shaped(token_tree(2, 2), reward, potential).tolist() == [[-9.0, 22.0], [-27.0, -26.0]]
    ends = torch.tensor([100.0, 200.0, 300.0], dtype=torch.float64)
    assert shaping.shaped(token_tree(2, 2), reward, potential, ends).tolist() == [[91.0, 22.0], [173.0, 274.0]]


@settings(max_examples=25, deadline=None)
@given(CASES)
def test_the_policy_stays_and_the_values_fall_by_the_potential(case: Case) -> None:
    assert shaping.policy_gap(case.tree, case.sft, _potential(case)) < 1e-12
    assert shaping.soft_value_gap(case.tree, case.sft, _potential(case)) < 1e-12


@settings(max_examples=25, deadline=None)
@given(CASES)
def test_returns_change_by_the_first_states_potential(case: Case) -> None:
    potential = _potential(case)
    shaped = shaping.shaped(case.tree, case.sft, potential)
    change = expected_return(case.tree, case.expert, shaped) - expected_return(case.tree, case.expert, case.sft)
    assert torch.isclose(change, -(case.tree.initial * potential).sum())


@settings(max_examples=25, deadline=None)
@given(CASES)
def test_log_pi_sft_is_the_recovered_reward_shaped_by_v(case: Case) -> None:
    shaped = shaping.shaped(case.tree, recovered_reward(case.tree, case.sft), soft_value(case.sft))
    assert torch.allclose(shaped, log_boltzmann(case.sft))


def test_a_potential_at_the_end_moves_the_policy() -> None:
    before, after = shaping.a10_counter_example()
    assert before.tolist() == pytest.approx([1 / 2, 1 / 2])
    assert after.tolist() == pytest.approx([3 / 4, 1 / 4])


def test_one_potential_for_all_ends_does_not() -> None:
    case = draw(3, 2, 3)
    ends = torch.full((case.tree.terminals,), 2.5, dtype=torch.float64)
    assert shaping.policy_gap(case.tree, case.sft, _potential(case), ends) < 1e-12


@settings(max_examples=25, deadline=None)
@given(CASES)
def test_a10s_line_is_off_by_the_potential(case: Case) -> None:
    gap = shaping.a10_gap_as_printed(case.tree, case.sft, _potential(case))
    assert gap == pytest.approx(float(_potential(case).abs().max()))


@settings(max_examples=25, deadline=None)
@given(CASES)
def test_a9_repaired(case: Case) -> None:
    shift, value = shaping.relative_shift(case.tree, case.sft, case.ref)
    assert torch.allclose(shift, value)
    assert shift.abs().max() > 0


def test_a9_repaired_by_hand() -> None:
    """V_SFT = log 4 and V_ref = log 8 at the root; one token."""
    sft, ref = (torch.log(torch.tensor([q], dtype=torch.float64)) for q in ((3.0, 1.0), (4.0, 4.0)))
    shift, _ = shaping.relative_shift(token_tree(2, 1), sft, ref)
    assert shift.flatten().tolist() == pytest.approx([math.log(2), math.log(2)])


def test_a9_as_printed_fails() -> None:
    returns, bound = shaping.a9_counter_example()
    assert returns == pytest.approx(math.log(2))
    assert bound == pytest.approx(0)


@settings(max_examples=10, deadline=None)
@given(CASES)
def test_equal_rewards_leave_a9_with_nothing_to_say(case: Case) -> None:
    """r_SFT = r_ref, which A.9 as printed needs, makes the two policies one."""
    ref = soft_q(case.tree, recovered_reward(case.tree, case.sft))
    assert shaping.a9_gap_as_printed(case.tree, case.sft, ref) < 1e-12
    assert torch.allclose(boltzmann(ref), boltzmann(case.sft))


def test_the_promised_range_moves_with_an_offset_and_the_returns_do_not() -> None:
    case = draw(1, 2, 3)
    promised, naive, _ = shaping.dynamic_range_sides(case.tree, case.sft, case.ref)
    moved, same, _ = shaping.dynamic_range_sides(case.tree, case.sft + 100, case.ref + 100)
    assert same == pytest.approx(naive)
    assert moved > promised + 90


def test_dynamic_ranges_by_hand() -> None:
    """max |G|: log 4 under log pi_SFT, log 3 under w/V's reward, log 2 under r_hat; V is log 4 for both."""
    sft, ref = (torch.log(torch.tensor([q], dtype=torch.float64)) for q in ((3.0, 1.0), (2.0, 2.0)))
    expected = (math.log(4), math.log(4) - math.log(2), math.log(3) - math.log(2))
    assert shaping.dynamic_range_sides(token_tree(2, 1), sft, ref) == pytest.approx(expected)
