import math

import pytest
import torch

from dpr_core.masking import response_mask
from dpr_core.returns import reward_to_go


def test_undiscounted_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 5.0, 0.0]])
    assert reward_to_go(rewards, response_mask([3, 2])).tolist() == [[6.0, 5.0, 3.0], [4.0, 5.0, 0.0]]


def test_discounted_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0]])
    assert reward_to_go(rewards, response_mask([3]), gamma=0.5).tolist() == [[1 + 1 + 1, 2 + 2, 4.0]]


@pytest.mark.parametrize("garbage", [1e30, math.nan, math.inf])
def test_what_lies_outside_the_mask_counts_for_nothing_and_comes_out_as_zero(garbage: float) -> None:
    rewards = torch.tensor([[1.0, garbage, garbage], [1.0, 1.0, 1.0]])
    returns = reward_to_go(rewards, response_mask([1, 3]), gamma=0.5)
    assert returns.tolist() == [[1.0, 0.0, 0.0], [1.75, 1.5, 1.0]]


@pytest.mark.parametrize("gamma", [1.0, 0.93, 0.5, 0.0])
def test_against_the_double_sum(gamma: float) -> None:
    lengths = [6, 1, 4]
    rewards = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)).double()
    returns = reward_to_go(rewards, response_mask(lengths), gamma)
    for i, length in enumerate(lengths):
        for t in range(6):
            expected = sum(gamma ** (k - t) * rewards[i, k].item() for k in range(t, length))
            assert returns[i, t].item() == pytest.approx(expected, abs=1e-12)


def test_the_rewards_themselves_are_left_alone() -> None:
    rewards = torch.tensor([[1.0, 2.0]])
    reward_to_go(rewards, response_mask([1]))
    assert rewards.tolist() == [[1.0, 2.0]]


def test_no_rows() -> None:
    assert reward_to_go(torch.zeros(0, 0), response_mask([])).shape == (0, 0)
