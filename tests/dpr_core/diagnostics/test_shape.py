import math

import pytest
import torch

from dpr_core.diagnostics import shape
from dpr_core.masking import response_mask

REWARDS = torch.tensor([[1.0, 2.0, 3.0], [4.0, -2.0, 77.0]])
MASK = response_mask([3, 2])


def test_spread_and_noise_see_the_responses_alone() -> None:
    assert shape.root_mean_square(REWARDS, MASK) == pytest.approx(math.sqrt((1 + 4 + 9 + 16 + 4) / 5))
    # The mean is 1.6.
    assert shape.standard_deviation(REWARDS, MASK) == pytest.approx(math.sqrt((0.36 + 0.16 + 1.96 + 5.76 + 12.96) / 5))


def test_correlation_by_hand() -> None:
    x, y = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])
    assert shape.correlation(x, y) == pytest.approx(0.5)
    assert shape.correlation(x, -2 * x + 5) == pytest.approx(-1)
    assert shape.correlation(x, torch.ones(3)) is None


def test_the_advantage_of_the_end_token_is_its_whitened_return() -> None:
    # Returns 6, 5, 3 and 2, -2: mean 2.8, and the end tokens have 3 and -2.
    deviation = math.sqrt((3.2**2 + 2.2**2 + 0.2**2 + 0.8**2 + 4.8**2) / 5)
    both, first = torch.tensor([True, True]), torch.tensor([True, False])
    assert shape.end_advantage(REWARDS, MASK, both) == pytest.approx((0.2 - 4.8) / 2 / deviation, abs=1e-6)
    assert shape.end_advantage(REWARDS, MASK, first) == pytest.approx(0.2 / deviation, abs=1e-6)
    assert shape.end_advantage(REWARDS, MASK, ~both) is None


def test_share_of_the_largest_tokens() -> None:
    assert shape.top_share(REWARDS, MASK) == pytest.approx(4 / 12)
    assert shape.top_share(REWARDS, MASK, share=0.4) == pytest.approx(7 / 12)
    hundreds = torch.ones(2, 100)
    hundreds[0, 0] = hundreds[1, 7] = -101.0
    assert shape.top_share(hundreds, torch.ones(2, 100, dtype=torch.bool)) == pytest.approx(202 / 400)
    assert shape.top_share(torch.zeros(1, 3), response_mask([3])) == 0


def test_means_by_position_and_by_length() -> None:
    assert shape.by_position(REWARDS, MASK) == [(0.0, 2.5), (1.0, 0.0), (2.0, 3.0)]
    assert shape.by_length(REWARDS, MASK) == [(2.0, 2.0), (3.0, 6.0)]
    assert shape.by_length(REWARDS, MASK, groups=1) == [(2.5, 4.0)]
