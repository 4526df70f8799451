import numpy as np
import pytest

from dpr_core.evaluation.categories import by_category
from dpr_core.stats import bootstrap_means


def test_means_intervals_and_counts_by_hand() -> None:
    found = by_category(
        [("math", [1.0]), ("math", [0.0, 0.5]), ("writing", [1.0]), ("math", []), ("coding", []), ("", [0.0])],
        samples=300,
        seed=4,
        scale=100,
    )
    assert list(found) == ["math", "writing"]
    sums, counts = (bootstrap_means(values, 300, 4) for values in ([1.0, 0.5], [1, 2]))
    low, high = np.quantile(100 * sums / counts, [0.025, 0.975])
    assert found["math"] == {
        "mean": pytest.approx(50.0), "low": pytest.approx(low), "high": pytest.approx(high), "prompts": 2,
    }  # fmt: skip
    assert found["writing"] == {"mean": 100.0, "low": None, "high": None, "prompts": 1}


@pytest.mark.parametrize("category", ["", "math"])
def test_one_category_is_the_whole(category: str) -> None:
    assert by_category([(category, [1.0]), (category, [0.0])], 100, 0) == {}
