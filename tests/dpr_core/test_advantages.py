import math
import statistics

import pytest
import torch

from dpr_core.advantages import centre, explained_variance, gae, position_baseline, whiten
from dpr_core.masking import response_mask
from dpr_core.returns import reward_to_go


def test_by_hand_with_the_population_variance() -> None:
    """1, 2, 3: mean 2 and variance 2/3, not 1."""
    found = whiten(torch.tensor([[1.0, 2.0], [3.0, 99.0]]), response_mask([2, 1]))
    root = math.sqrt(3 / 2)
    torch.testing.assert_close(found, torch.tensor([[-root, 0.0], [root, 0.0]]))


def test_one_mean_and_one_deviation_for_the_whole_batch() -> None:
    lengths = [5, 2, 3]
    values = 3 + 2 * torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).double()
    mask = response_mask(lengths)
    values[~mask] = math.nan
    found = whiten(values, mask)
    numbers = [values[i, t].item() for i, length in enumerate(lengths) for t in range(length)]
    mean, deviation = statistics.fmean(numbers), statistics.pstdev(numbers)
    for i, length in enumerate(lengths):
        for t in range(5):
            expected = (values[i, t].item() - mean) / deviation if t < length else 0.0
            assert found[i, t].item() == pytest.approx(expected, abs=1e-12)
    assert statistics.fmean(found[mask].tolist()) == pytest.approx(0, abs=1e-12)
    assert statistics.pvariance(found[mask].tolist()) == pytest.approx(1, abs=1e-12)


def test_centring_takes_the_mean_of_all_tokens_and_scales_nothing() -> None:
    """1, 2, 6 over three tokens: mean 3."""
    found = centre(torch.tensor([[1.0, 2.0], [6.0, math.nan]]), response_mask([2, 1]))
    assert found.tolist() == [[-2.0, -1.0], [3.0, 0.0]]


@pytest.mark.parametrize("values", [[[2.0, 2.0]], [[5.0]]])
def test_equal_returns_give_no_advantage(values: list[list[float]]) -> None:
    tensor = torch.tensor(values)
    assert whiten(tensor, torch.ones_like(tensor, dtype=torch.bool)).eq(0).all()


def test_the_position_baseline_by_hand() -> None:
    """Position 1 has all three responses, position 2 two of them, position 3 one."""
    returns = torch.tensor([[6.0, 4.0, 1.0], [3.0, 2.0, math.nan], [0.0, math.nan, math.nan]])
    found = position_baseline(returns, response_mask([3, 2, 1]))
    assert found.tolist() == [[1.5, 2.0, 0.0], [3.0, 4.0, 0.0], [4.5, 0.0, 0.0]]


def test_a_response_alone_has_no_position_baseline() -> None:
    assert position_baseline(torch.tensor([[5.0, 3.0]]), response_mask([2])).tolist() == [[0.0, 0.0]]


def test_a_position_baseline_does_not_depend_on_the_responses_own_return() -> None:
    returns = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    mask = response_mask([3, 3, 2, 1])
    changed = returns.clone()
    changed[1] += 100
    before, after = position_baseline(returns, mask), position_baseline(changed, mask)
    torch.testing.assert_close(after[1], before[1], atol=1e-4, rtol=0)
    assert (after[0] - before[0]).abs().min() > 30


LENGTHS = [3, 1, 5]
MASK = response_mask(LENGTHS)


def _numbers(seed: int) -> torch.Tensor:
    """Garbage outside the mask must not matter."""
    numbers = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)).double()
    return torch.where(MASK, numbers, math.nan)


def test_gae_by_hand() -> None:
    """TD residuals 1 + 0.5 * 4 - 2 = 1, 0 + 0.5 * 6 - 4 = -1 and 8 + 0 - 6 = 2; gamma lambda is 0.25."""
    rewards, values = torch.tensor([[1.0, 0.0, 8.0]]), torch.tensor([[2.0, 4.0, 6.0]])
    assert gae(rewards, values, response_mask([3]), 0.5, 0.5).tolist() == [[1 - 0.25 + 0.125, -1 + 0.5, 2.0]]


@pytest.mark.parametrize(("gamma", "smoothing"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.9, 0.0)])
def test_gae_is_the_weighted_mean_of_its_n_step_advantages(gamma: float, smoothing: float) -> None:
    """(1 - lambda) sum_n lambda^(n-1) A^(n), each n-step advantage a sum of its own; the last one takes the rest."""
    rewards, values = _numbers(0), _numbers(1)
    found = gae(rewards, values, MASK, gamma, smoothing)
    for i, length in enumerate(LENGTHS):
        r, v = rewards[i].tolist(), [*values[i, :length].tolist(), 0.0]
        for t in range(length):
            steps = length - t
            n_step = [
                sum(gamma**k * r[t + k] for k in range(n)) + gamma**n * v[t + n] - v[t] for n in range(1, steps + 1)
            ]
            weights = [(1 - smoothing) * smoothing ** (n - 1) for n in range(1, steps)] + [smoothing ** (steps - 1)]
            expected = sum(w * a for w, a in zip(weights, n_step, strict=True))
            assert found[i, t].item() == pytest.approx(expected, abs=1e-12)
    assert found[~MASK].eq(0).all()


def test_gae_at_lambda_1_is_the_return_minus_the_value_and_at_0_the_td_residual() -> None:
    rewards, values = _numbers(2), _numbers(3)
    one, zero = (gae(rewards, values, MASK, 0.9, smoothing) for smoothing in (1.0, 0.0))
    expected = reward_to_go(rewards, MASK, 0.9) - values
    torch.testing.assert_close(one[MASK], expected[MASK])
    r, v = rewards[2].tolist(), values[2].tolist()
    assert zero[2].tolist() == pytest.approx([*(r[t] + 0.9 * v[t + 1] - v[t] for t in range(4)), r[4] - v[4]])


def test_explained_variance_by_hand() -> None:
    """Returns 1, 3, 5 have variance 8/3; errors 0, 1, 2 have 2/3. A constant error counts for nothing."""
    returns, mask = torch.tensor([[1.0, 3.0], [5.0, 99.0]]), response_mask([2, 1])
    errors = torch.tensor([[0.0, 1.0], [2.0, 50.0]])
    assert explained_variance(returns - errors, returns, mask) == pytest.approx(0.75)
    assert explained_variance(returns - 7, returns, mask) == pytest.approx(1)
    assert explained_variance(torch.zeros(2, 2), returns, mask) == pytest.approx(0)
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3)
