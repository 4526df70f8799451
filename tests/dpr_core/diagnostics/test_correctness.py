import pytest
import torch

from dpr_core.diagnostics.correctness import AurocEstimate, correctness, within_prompts

RIGHT = torch.tensor([[True, False, True], [True, True, True], [False, False, False], [False, True, False]])
VALUES = torch.tensor([[3.0, 2.0, 1.0], [9.0, 9.0, 9.0], [5.0, 6.0, 7.0], [0.0, 4.0, 4.0]])


def test_prompts_with_answers_of_one_kind_do_not_count() -> None:
    # First prompt: 3 above 2, 1 below it. Last prompt: 4 above 0, level with 4.
    assert within_prompts(VALUES, RIGHT) == [0.5, 0.75]


def test_the_record_of_correctness() -> None:
    found = correctness(VALUES, -VALUES, torch.ones(4, 3), RIGHT, seed=0)
    assert (found.prompts, found.all_right, found.all_wrong, found.counted) == (4, 1, 1, 2)
    assert found.accuracy == 0.5
    assert found.of_return is not None
    assert found.of_return.value == 0.625
    # With two prompts, resamples have mean .5, .625 or .75.
    assert (found.of_return.low, found.of_return.high) == (0.5, 0.75)
    assert found.of_log_sft is not None
    assert found.of_log_sft.value == pytest.approx(1 - 0.625)
    assert found.of_length == AurocEstimate(0.5, 0.5, 0.5)


def test_one_prompt_has_no_interval_and_none_no_estimate() -> None:
    one = correctness(VALUES[:2], VALUES[:2], VALUES[:2], RIGHT[:2], seed=0)
    assert one.of_return == AurocEstimate(0.5)
    none = correctness(VALUES[1:3], VALUES[1:3], VALUES[1:3], RIGHT[1:3], seed=0)
    assert none.of_return is None
    assert none.counted == 0
