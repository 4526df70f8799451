import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpr_core.diagnostics.ranking import auroc


@pytest.mark.parametrize(
    ("higher", "lower", "expected"),
    [
        ([2.0, 3.0], [0.0, 1.0], 1.0),
        ([0.0], [1.0, 2.0, 3.0], 0.0),
        ([1.0], [1.0], 0.5),
        ([1.0, 3.0], [2.0, 1.0], (0.5 + 0 + 1 + 1) / 4),
    ],
)
def test_of_hand_sized_values(higher: list[float], lower: list[float], expected: float) -> None:
    assert auroc(torch.tensor(higher), torch.tensor(lower)) == expected


values = st.lists(st.integers(-3, 3), min_size=1, max_size=8)


@given(values, values)
def test_is_the_share_of_pairs_in_order(higher: list[int], lower: list[int]) -> None:
    pairs = [(h > x) + (h == x) / 2 for h in higher for x in lower]
    assert auroc(torch.tensor(higher), torch.tensor(lower)) == pytest.approx(sum(pairs) / len(pairs))


def test_needs_both_sides() -> None:
    with pytest.raises(ValueError, match="either side"):
        auroc(torch.tensor([1.0]), torch.tensor([]))
