import math
import statistics

import pytest
import torch

from dpr_core.advantages import whiten
from dpr_core.masking import response_mask


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


@pytest.mark.parametrize("values", [[[2.0, 2.0]], [[5.0]]])
def test_equal_returns_give_no_advantage(values: list[list[float]]) -> None:
    tensor = torch.tensor(values)
    assert whiten(tensor, torch.ones_like(tensor, dtype=torch.bool)).eq(0).all()
