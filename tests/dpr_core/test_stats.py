import itertools
import math

import numpy as np
import pytest

from dpr_core import stats
from dpr_core.stats import (
    bootstrap_means,
    error_behind,
    holm,
    length_adjusted_rate,
    mean_and_error,
    mean_interval,
    paired_test,
    ratio_difference_interval,
    ratio_interval,
    t_interval,
    t_test,
)

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


def test_without_a_difference_of_length_the_rate_is_the_plain_one() -> None:
    rate = length_adjusted_rate([1, 1, 0.5, 0], [5, 5, 5, 5], [5, 5, 5, 5], samples=200, seed=0)
    assert rate is not None
    assert rate.rate == pytest.approx(62.5, abs=0.05)
    assert rate.low < 62.5 < rate.high


def test_a_win_rate_that_is_all_length_is_even_at_equal_length() -> None:
    """Wins with a probability that length alone decides: 0.5 where lengths are equal."""
    generator = np.random.default_rng(1)
    difference = generator.normal(30, 40, 4000)
    x = np.tanh(difference / difference.std())
    wins = (generator.random(4000) < 1 / (1 + np.exp(-2 * x))).astype(float)
    lengths = [round(1000 + d) for d in difference]
    rate = length_adjusted_rate(wins.tolist(), lengths, [1000] * 4000, samples=100, seed=0)
    assert rate is not None
    assert wins.mean() > 0.6
    assert rate.rate == pytest.approx(50, abs=2.5)
    assert rate.low < 50 < rate.high


def test_the_fit_is_where_the_gradient_vanishes() -> None:
    scores, lengths, baseline = [1.0, 0.5, 0.0, 1.0, 0.0], [10, 30, 20, 60, 5], [20, 20, 20, 20, 20]
    difference = np.array(lengths) - np.array(baseline)
    x = np.tanh(difference / difference.std())

    def loss(a: float, b: float) -> float:
        p = 1 / (1 + np.exp(-(a + b * x)))
        y = np.array(scores)
        return float(-(y * np.log(p) + (1 - y) * np.log(1 - p)).sum() + 5e-4 * (a * a + b * b))

    grid = np.linspace(-2, 2, 401)
    best = min(itertools.product(grid, grid), key=lambda ab: loss(*ab))
    rate = length_adjusted_rate(scores, lengths, baseline, samples=100, seed=0)
    assert rate is not None
    assert rate.rate == pytest.approx(100 / (1 + np.exp(-best[0])), abs=0.3)


def test_a_policy_that_always_wins_has_a_rate() -> None:
    rate = length_adjusted_rate([1.0] * 20, list(range(20)), [3] * 20, samples=100, seed=0)
    assert rate is not None
    assert 99 < rate.rate <= 100


def test_the_paired_test_against_all_sign_flips() -> None:
    first, second = [1.0, 1.0, 0.5, 1.0, 0.0, 1.0], [0.0, 0.5, 0.5, 0.0, 0.5, 0.0]
    differences = np.subtract(first, second)
    flips = [abs(np.dot(signs, differences)) for signs in itertools.product([-1, 1], repeat=6)]
    exact = np.mean([flip >= abs(differences.sum()) for flip in flips])
    test = paired_test(first, second, samples=1000, seed=0)
    assert test is not None
    assert test.difference == pytest.approx(50.0)
    assert test.p_value == pytest.approx(exact, rel=1e-12)
    assert test.low < 50 < test.high


def test_equal_policies_do_not_differ() -> None:
    test = paired_test([1.0, 0.0, 0.5] * 10, [1.0, 0.0, 0.5] * 10, samples=500, seed=0)
    assert test is not None
    assert (test.difference, test.p_value) == (0.0, 1.0)


def test_one_prompt_shows_nothing() -> None:
    assert length_adjusted_rate([1.0], [1], [1], samples=100, seed=0) is None
    assert paired_test([1.0], [0.0], samples=100, seed=0) is None


def test_the_paired_test_is_exact() -> None:
    """Against every one of the 2^9 ways to flip the signs, and far below what drawing some of them could show."""
    first = [1.0, 0.75, 0.5, 0.25, 1.0, 0.5, 0.0, 1.0, 0.5, 0.25]
    second = [0.0, 0.5, 0.75, 0.0, 0.25, 0.5, 0.5, 0.25, 0.0, 0.0]
    differences = np.subtract(first, second)
    moving = differences[differences != 0]
    flips = [abs(np.dot(signs, moving)) for signs in itertools.product([-1, 1], repeat=len(moving))]
    test = paired_test(first, second, samples=100, seed=0)
    assert test is not None
    assert test.p_value == pytest.approx(np.mean([flip >= abs(differences.sum()) for flip in flips]), rel=1e-12)
    always = paired_test([1.0] * 40, [0.0] * 40, samples=100, seed=0)
    assert always is not None
    assert always.p_value == pytest.approx(2 / 2**40, rel=1e-9)
    many = paired_test([1.0] * 410 + [0.5] * 390, [0.5] * 410 + [1.0] * 390, samples=100, seed=0)
    assert many is not None
    # Of 800 coins at least 410 heads, or at most 390.
    heads = sum(math.comb(800, k) for k in range(410, 801)) * 2 / 2**800
    assert many.p_value == pytest.approx(heads, rel=1e-9)


def test_scores_of_more_than_two_games_are_not_quarters() -> None:
    with pytest.raises(ValueError, match="quarters"):
        paired_test([1 / 3, 1.0], [0.0, 0.0], samples=100, seed=0)


def test_the_interval_at_equal_length_covers_as_often_as_it_says() -> None:
    """Of 60 samples from one truth, about 95% of the intervals hold it: at least 50 do."""
    generator = np.random.default_rng(3)
    held = 0
    for seed in range(60):
        difference = generator.normal(20, 50, 200)
        x = np.tanh(difference / difference.std())
        wins = (generator.random(200) < 1 / (1 + np.exp(-(0.4 + x)))).astype(float)
        lengths = (1000 + difference).round().astype(int).tolist()
        rate = length_adjusted_rate(wins.tolist(), lengths, [1000] * 200, samples=200, seed=seed)
        assert rate is not None
        held += rate.low <= 100 / (1 + np.exp(-0.4)) <= rate.high
    assert 50 <= held < 60


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_students_tests_are_scipys() -> None:
    from scipy import stats

    values = [1.25, 2.5, 0.5, 3.0]
    mean, error = mean_and_error(values)
    assert t_test(mean, error, 4) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    sides = [stats.ttest_1samp(values, -4, alternative="greater"), stats.ttest_1samp(values, 4, alternative="less")]
    assert t_test(mean, error, 4, margin=4.0) == pytest.approx(max(each.pvalue for each in sides))
    assert (interval := t_interval(values)) is not None
    assert error_behind(interval, 4) == pytest.approx(error)
    assert [t_test(1.0, 0.0, 3), t_test(0.0, 0.0, 3), t_test(1.0, 0.0, 3, 2.0), t_test(3.0, 0.0, 3, 2.0)] == [
        0,
        1,
        0,
        1,
    ]


def test_the_interval_of_a_ratio_is_that_of_a_naive_bootstrap() -> None:
    totals, weights = [1.0, 0.0, 4.0, 2.0], [2.0, 0.0, 4.0, 3.0]
    generator = np.random.default_rng(3)
    draws = generator.integers(0, 4, (500, 4))
    below = [sum(weights[i] for i in row) for row in draws]
    ratios = [sum(totals[i] for i in row) / w for row, w in zip(draws, below, strict=True) if w > 0]
    assert ratio_interval(totals, weights, 500, 3) == pytest.approx(tuple(np.quantile(ratios, [0.025, 0.975])))
    assert ratio_interval([1.0], [1.0], 500, 3) is None
    other = [2.0, 1.0, 1.0, 0.0], [2.0, 1.0, 1.0, 1.0]
    between = [
        r - sum(other[0][i] for i in row) / sum(other[1][i] for i in row)
        for r, row in zip(ratios, (row for row, w in zip(draws, below, strict=True) if w > 0), strict=True)
    ]
    assert ratio_difference_interval((totals, weights), other, 500, 3) == pytest.approx(
        tuple(np.quantile(between, [0.025, 0.975]))
    )
