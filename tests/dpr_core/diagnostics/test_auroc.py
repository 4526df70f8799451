import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpr_core.diagnostics.auroc import AurocEstimate, auroc, auroc_by_prompt, correctness

RIGHT = torch.tensor([[True, False, True], [True, True, True], [False, False, False], [False, True, False]])
VALUES = torch.tensor([[3.0, 2.0, 1.0], [9.0, 9.0, 9.0], [5.0, 6.0, 7.0], [0.0, 4.0, 4.0]])


def test_prompts_with_answers_of_one_kind_do_not_count() -> None:
    # First prompt: 3 above 2, 1 below it. Last prompt: 4 above 0, level with 4.
    assert auroc_by_prompt(VALUES, RIGHT) == [0.5, 0.75]


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


@pytest.mark.parametrize(
    ("higher", "lower", "expected"),
    [
        ([2.0, 3.0], [0.0, 1.0], 1.0),
        ([0.0], [1.0, 2.0, 3.0], 0.0),
        ([1.0], [1.0], 0.5),
        ([1.0, 3.0], [2.0, 1.0], (0.5 + 0 + 1 + 1) / 4),
    ],
)
def test_the_auroc_of_hand_sized_values(higher: list[float], lower: list[float], expected: float) -> None:
    assert auroc(torch.tensor(higher), torch.tensor(lower)) == expected


values = st.lists(st.integers(-3, 3), min_size=1, max_size=8)


@given(values, values)
def test_the_auroc_is_the_share_of_pairs_in_order(higher: list[int], lower: list[int]) -> None:
    pairs = [(h > x) + (h == x) / 2 for h in higher for x in lower]
    assert auroc(torch.tensor(higher), torch.tensor(lower)) == pytest.approx(sum(pairs) / len(pairs))


def test_an_auroc_needs_both_sides() -> None:
    with pytest.raises(ValueError, match="either side"):
        auroc(torch.tensor([1.0]), torch.tensor([]))
