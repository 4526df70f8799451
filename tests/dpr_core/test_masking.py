import math

import pytest
import torch

from dpr_core.masking import masked_mean, masked_sum, mean_by_position, response_mask


def test_a_mask_is_true_exactly_where_a_row_has_tokens() -> None:
    expected = [[True, True, False], [False, False, False], [True, True, True]]
    mask = response_mask([2, 0, 3])
    assert mask.dtype == torch.bool
    assert mask.tolist() == expected


def test_no_rows_give_an_empty_mask() -> None:
    assert response_mask([]).shape == (0, 0)


def test_the_mean_weighs_every_token_alike_whatever_row_it_is_in() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [10.0, math.nan, math.inf]])
    assert masked_mean(values, response_mask([3, 1])).item() == pytest.approx((1 + 2 + 3 + 10) / 4)


def test_sums_are_per_row_and_ignore_what_lies_outside() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [10.0, math.nan, -math.inf], [math.nan, 1.0, 1.0]])
    assert masked_sum(values, response_mask([3, 1, 0])).tolist() == [6.0, 10.0, 0.0]


def test_the_mean_at_a_position_is_over_the_rows_that_reach_it() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [10.0, math.nan, math.inf], [4.0, 6.0, math.nan]])
    assert mean_by_position(values, response_mask([3, 1, 2])) == [5.0, 4.0, 3.0]
