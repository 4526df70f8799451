import math

import pytest
import torch

from dpr_core.losses import clip_binds, clipped, clipped_value, dft, k1_kl, nll, reinforce, squared_error


def test_nll_by_hand() -> None:
    log_probs = torch.tensor([0.5, 0.1]).log()
    torch.testing.assert_close(nll(log_probs), torch.tensor([math.log(2), math.log(10)]))


def test_dft_has_the_gradient_of_the_probability_itself() -> None:
    """And the value of a mean that nothing is learned through: the weight is a number."""
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    chosen = torch.log_softmax(logits, -1)[:, 2]
    loss = dft(chosen)
    for value, p in zip(loss.tolist(), torch.softmax(logits, -1)[:, 2].tolist(), strict=True):
        assert value == pytest.approx(-p * math.log(p), abs=1e-15)
    (ours,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    (plain,) = torch.autograd.grad(-torch.softmax(logits, -1)[:, 2].sum(), logits)
    torch.testing.assert_close(ours, plain, atol=1e-15, rtol=0)


def test_reinforce_by_hand() -> None:
    """Line 9 of Algorithm 1: minus log pi times G."""
    assert reinforce(torch.tensor([-2.0, -3.0, -1.0]), torch.tensor([1.5, -2.0, 0.0])).tolist() == [3.0, -6.0, 0.0]


CASES = [
    # ratio, advantage, loss, derivative by log pi
    (1.0, 3.0, -3.0, -3.0),
    (1.1, 1.0, -1.1, -1.1),
    (1.5, 1.0, -1.2, 0.0),  # already more likely than the clip: no further
    (0.5, 1.0, -0.5, -0.5),  # moved the wrong way: brought back
    (0.9, -2.0, 1.8, 1.8),
    (0.5, -2.0, 1.6, 0.0),  # already less likely than the clip: no further
    (1.5, -2.0, 3.0, 3.0),  # moved the wrong way: brought back
    (1.5, 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "derivative"), CASES)
def test_the_clip_by_hand(ratio: float, advantage: float, loss: float, derivative: float) -> None:
    old = torch.tensor([-1.5], dtype=torch.float64)
    log_probs = (old + math.log(ratio)).requires_grad_()
    found = clipped(log_probs, old, torch.tensor([advantage], dtype=torch.float64), 0.2)
    assert found.item() == pytest.approx(loss)
    found.sum().backward()
    assert log_probs.grad is not None
    assert log_probs.grad.item() == pytest.approx(derivative, abs=1e-12)


@pytest.mark.parametrize(("ratio", "advantage", "loss", "derivative"), CASES)
def test_the_clip_binds_where_it_takes_the_gradient_away(
    ratio: float, advantage: float, loss: float, derivative: float
) -> None:
    """And not where a ratio is as far off on the side from which the advantage brings it back."""
    old = torch.tensor([-1.5], dtype=torch.float64)
    binds = clip_binds(old + math.log(ratio), old, torch.tensor([advantage], dtype=torch.float64), 0.2)
    assert binds.tolist() == [derivative == 0 and advantage != 0]


@pytest.mark.parametrize("gap", [-500.0, -95.0, 21.0, 95.0, 500.0])
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_a_log_ratio_far_away_has_a_finite_loss_and_gradient(gap: float, advantage: float) -> None:
    """Unbounded, exp(95) is infinite in float32, and the gradient of what is clipped there is infinity times 0."""
    log_probs = torch.tensor([gap - 3.0], requires_grad=True)
    loss = clipped(log_probs, torch.tensor([-3.0]), torch.tensor([advantage]), 0.2)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [pytest.approx(0, abs=1e-30)]
    if (gap > 0) == (advantage > 0):
        assert loss.item() == pytest.approx(-advantage * (1.2 if gap > 0 else 0.8))


def test_before_the_first_update_its_gradient_is_reinforces() -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs, advantages = -torch.rand(20, generator=generator), torch.randn(20, generator=generator)
    ours, plain = log_probs.clone().requires_grad_(), log_probs.clone().requires_grad_()
    clipped(ours, log_probs, advantages, 0.2).sum().backward()
    reinforce(plain, advantages).sum().backward()
    assert ours.grad is not None
    assert plain.grad is not None
    torch.testing.assert_close(ours.grad, plain.grad)


def test_the_kl_estimate_is_clamped_on_both_sides() -> None:
    found = k1_kl(torch.tensor([-1.0, -1.0, -30.0, -5.0]), torch.tensor([-3.0, -1.0, -1.0, -40.0]), bound=10.0)
    assert found.tolist() == [2.0, 0.0, -10.0, 10.0]


VALUES = [
    # new value, old value, return, loss, derivative by the new value
    (1.0, 1.0, 3.0, 2.0, -2.0),
    (1.1, 1.0, 3.0, 1.805, -1.9),
    (2.0, 1.0, 3.0, 0.5 * 1.8**2, 0.0),  # beyond the clip on the way to the return: no further
    (0.0, 1.0, 3.0, 4.5, -3.0),  # moved the wrong way: brought back
    (2.0, 1.0, 0.0, 2.0, 2.0),
    (0.5, 1.0, 0.0, 0.5 * 0.8**2, 0.0),
    (5.0, 1.0, 1.5, 6.125, 3.5),  # beyond the return: brought back
    (3.0, 3.0, 3.0, 0.0, 0.0),
]


def test_the_critics_error_by_hand() -> None:
    values = torch.tensor([1.0, -40.0], requires_grad=True)
    found = squared_error(values, torch.tensor([3.0, -60.0]))
    assert found.tolist() == [2.0, 200.0]
    found.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [-2.0, 20.0]


@pytest.mark.parametrize(("value", "old", "target", "loss", "derivative"), VALUES)
def test_the_value_clip_by_hand(value: float, old: float, target: float, loss: float, derivative: float) -> None:
    values = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    found = clipped_value(values, *(torch.tensor([x], dtype=torch.float64) for x in (old, target)), 0.2)
    assert found.item() == pytest.approx(loss)
    found.sum().backward()
    assert values.grad is not None
    assert values.grad.item() == pytest.approx(derivative, abs=1e-12)
