import numpy as np
import pytest

from dpr_core.reporting import statistics
from dpr_core.reporting.statistics import bootstrap_means, mean_interval

VALUES = [0.0, 1.0, 0.5, 0.25, 1.0, 1.0, 0.0]


def loop_means(samples: int, seed: int) -> list[float]:
    generator = np.random.default_rng(seed)
    means = []
    for _ in range(samples):
        drawn = [VALUES[int(i)] for i in generator.integers(0, len(VALUES), len(VALUES))]
        means.append(sum(drawn) / len(drawn))
    return means


def test_resampled_means_equal_a_plain_loop() -> None:
    assert bootstrap_means(VALUES, 250, seed=5).tolist() == pytest.approx(loop_means(250, seed=5))


def test_working_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bootstrap_means(VALUES, 101, seed=1)
    monkeypatch.setattr(statistics, "_INDICES_AT_ONCE", 30)
    assert bootstrap_means(VALUES, 101, seed=1).tolist() == whole.tolist()


def test_the_interval_leaves_a_fortieth_on_each_side() -> None:
    # With 41 resamples the 2.5% and 97.5% quantiles are the second and the last but one.
    means = sorted(loop_means(41, seed=2))
    assert mean_interval(VALUES, 41, seed=2) == pytest.approx((means[1], means[-2]))
    assert mean_interval(VALUES, 41, seed=2, level=0.5) == pytest.approx((means[10], means[30]))


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(400):
        interval = mean_interval(generator.normal(3.0, 2.0, 60).tolist(), 400, seed=trial)
        assert interval is not None
        covered += interval[0] <= 3.0 <= interval[1]
    # 95% less the percentile bootstrap's known shortfall at 60 rows, within four standard errors of 400 trials.
    assert 0.89 <= covered / 400 <= 0.985


def test_too_few_rows_have_no_interval() -> None:
    assert mean_interval([], 100, seed=0) is None
    assert mean_interval([0.5], 100, seed=0) is None
    assert mean_interval([0.5, 0.5], 100, seed=0) == (0.5, 0.5)
