import itertools

import numpy as np
import pytest

from dpr_core.reporting.comparison import length_adjusted_rate, paired_test


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
    test = paired_test(first, second, samples=20_000, seed=0)
    assert test is not None
    assert test.difference == pytest.approx(50.0)
    assert test.p_value == pytest.approx(exact, abs=0.01)
    assert test.low < 50 < test.high


def test_equal_policies_do_not_differ() -> None:
    test = paired_test([1.0, 0.0, 0.5] * 10, [1.0, 0.0, 0.5] * 10, samples=500, seed=0)
    assert test is not None
    assert (test.difference, test.p_value) == (0.0, 1.0)


def test_one_prompt_shows_nothing() -> None:
    assert length_adjusted_rate([1.0], [1], [1], samples=100, seed=0) is None
    assert paired_test([1.0], [0.0], samples=100, seed=0) is None
