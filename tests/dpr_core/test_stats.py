import numpy as np
import pytest

from dpr_core import stats
from dpr_core.stats import bootstrap_means, mean_interval, t_interval

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
    monkeypatch.setattr(stats, "_INDICES_AT_ONCE", 30)
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


@pytest.mark.parametrize(("count", "quantile"), [(2, 12.706), (3, 4.303), (4, 3.182), (5, 2.776), (10, 2.262)])
def test_the_interval_over_seeds_is_students(count: int, quantile: float) -> None:
    # The quantiles are those of the printed tables, for count - 1 degrees of freedom.
    values = [float(v) for v in range(count)]
    mean, deviation = np.mean(values), np.std(values, ddof=1)
    half = quantile * deviation / count**0.5
    assert t_interval(values) == pytest.approx((mean - half, mean + half), abs=6e-4)


def test_another_level_of_the_interval_over_seeds() -> None:
    assert t_interval([0.0, 2.0], level=0.5) == pytest.approx((0.0, 2.0))


def test_the_interval_over_seeds_covers_the_true_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        interval = t_interval(generator.normal(3.0, 2.0, 3).tolist())
        assert interval is not None
        covered += interval[0] <= 3.0 <= interval[1]
    assert 0.93 <= covered / 2000 <= 0.97


def test_one_seed_shows_no_spread() -> None:
    assert t_interval([]) is None
    assert t_interval([0.5]) is None
    assert t_interval([0.5, 0.5]) == (0.5, 0.5)
