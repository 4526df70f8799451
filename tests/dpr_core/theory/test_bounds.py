import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr_core.theory import bounds
from dpr_core.theory.bounds import DUAL, Norm, Regulariser, norm
from dpr_core.theory.claim import SHAPES, Case, draw
from dpr_core.theory.soft_bellman import boltzmann
from dpr_core.theory.token_mdp import occupancy, random_q, token_tree

CASES = st.builds(lambda seed, shape: draw(seed, *shape), st.integers(0, 10**6), st.sampled_from(SHAPES[:4]))
NORMS: list[Norm] = list(DUAL)


def test_norms_and_their_duals() -> None:
    vector = torch.tensor([3.0, -4.0], dtype=torch.float64)
    assert [norm(vector, name) for name in ("l1", "l2", "linf")] == [7.0, 5.0, 4.0]
    assert DUAL == {"l1": "linf", "l2": "l2", "linf": "l1"}


def test_the_regulariser_by_hand() -> None:
    quadratic = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    psi = Regulariser(torch.tensor([1.0, 0.0], dtype=torch.float64), quadratic, 2.0)
    assert psi(psi.centre).item() == pytest.approx(0)
    expected = (2 + 2 + 3) / 2 + 2 * 2 * math.log(math.cosh(1))
    assert psi(torch.tensor([2.0, 1.0], dtype=torch.float64)).item() == pytest.approx(expected)
    assert psi.modulus("l2") == pytest.approx((5 - math.sqrt(5)) / 2)
    assert psi.modulus("linf") == pytest.approx(5 / 3)
    assert psi.modulus("l1") == pytest.approx((5 - math.sqrt(5)) / 4)
    assert psi.scaled(3.0).modulus("l2") == pytest.approx(3 * psi.modulus("l2"))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8))
def test_the_moduli_are_moduli(seed: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    psi = bounds.random_regulariser(size, generator)
    left, right = (torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2))
    gap = left - right
    monotone = float((psi.gradient(left) - psi.gradient(right)) @ gap)
    for name in NORMS:
        assert monotone >= psi.modulus(name) * norm(gap, name) ** 2 - 1e-9
    leaf = left.clone().requires_grad_()
    assert torch.allclose(torch.autograd.grad(psi(leaf), leaf)[0], psi.gradient(left))


def test_theorem_2_is_an_equality_for_half_the_square_norm() -> None:
    psi = Regulariser(torch.zeros(2, dtype=torch.float64), 4 * torch.eye(2, dtype=torch.float64), 0.0)
    expert, policy = (torch.tensor([p], dtype=torch.float64) for p in ((0.9, 0.1), (0.6, 0.4)))
    response = bounds.best_response(psi, expert, policy)
    assert response.tolist() == pytest.approx([0.075, -0.075])
    left, right = bounds.theorem2_sides(psi, expert, policy, psi.centre, expert, "l2")
    assert left == pytest.approx(right) == pytest.approx(math.sqrt(2) * 0.075)
    assert bounds.theorem2_sides(psi, expert, policy, psi.centre, expert, "linf") == pytest.approx((0.075, 0.15))


@settings(max_examples=10, deadline=None)
@given(CASES)
def test_the_saddle_is_a_saddle_and_the_repaired_bound_holds_there(case: Case) -> None:
    expert = occupancy(case.tree, case.expert)
    psi = bounds.random_regulariser(expert.numel(), case.generator())
    best, own = bounds.saddle(case.tree, psi, expert)
    assert torch.allclose(psi.gradient(best), (expert - own).flatten(), atol=1e-9)
    assert torch.allclose(bounds.best_response(psi, expert, own), best, atol=1e-9)
    policy = occupancy(case.tree, boltzmann(case.actor))
    for name in NORMS:
        left, right = bounds.theorem2_sides(psi, expert, policy, best, own, name)
        assert 0 < left <= right


def test_theorem_2_as_stated_fails_at_the_true_saddle() -> None:
    left, right = bounds.theorem2_counter_example()
    assert right == 0
    # r* = (x, -x) with x = 0.9 - sigmoid(2x), by bisection
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if 0.9 - 1 / (1 + math.exp(-2 * middle)) > middle else (low, middle)
    assert left == pytest.approx(math.sqrt(2) * low, abs=1e-9)
    assert left > 0.3


@settings(max_examples=25, deadline=None)
@given(CASES, st.floats(0.0, 3.0))
def test_safe_improvement(case: Case, spread: float) -> None:
    proxy = case.sft + random_q(case.tree, case.generator(), spread)
    old, new = case.expert, boltzmann(case.actor)
    excess, bound, tight = bounds.safe_improvement_sides(case.tree, case.sft, proxy, old, new)
    assert excess <= tight + 1e-12
    assert tight <= bound + 1e-12


def test_safe_improvement_by_hand() -> None:
    """One step, from the second token to the first; the proxy is wrong by 1 on both, and the bound is met."""
    mdp = token_tree(2, 1)
    reward = torch.tensor([[0.0, 5.0]], dtype=torch.float64)
    proxy = torch.tensor([[1.0, 4.0]], dtype=torch.float64)
    first, second = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]], dtype=torch.float64)
    assert bounds.safe_improvement_sides(mdp, reward, proxy, second, first) == (2.0, 2.0, 2.0)
    assert bounds.safe_improvement_sides(mdp, reward, proxy, first, second) == (-2.0, 2.0, 2.0)
