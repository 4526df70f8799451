"""Intervals and tests: bootstrap, Student's t, length-controlled win rate, paired sign-flip test, Holm's correction.

Written on numpy and scipy.special, which is imported where it is needed: the draws of the bootstrap are a contract (the
same seed gives the same interval whatever the release of scipy), and scipy.stats takes a second to import.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

_INDICES_AT_ONCE = 2**22
"""Rows drawn by the bootstrap in one go."""

_CELLS_AT_ONCE = 2**18
"""Resamples times prompts that are fitted together: as many as stay in a processor's cache."""

_NEWTON_STEPS = 50
_RIDGE = 1e-3
"""A little pull towards 0, without which a policy that always wins has no finite fit."""


def bootstrap_means(values: Sequence[float], samples: int, seed: int) -> Vector:
    """Means of `samples` resamples of the rows, drawn with replacement."""
    rows = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    at_once = max(1, _INDICES_AT_ONCE // len(rows))
    sizes = [min(at_once, samples - start) for start in range(0, samples, at_once)]
    return np.concatenate([rows[generator.integers(0, len(rows), (k, len(rows)))].mean(axis=1) for k in sizes])


def mean_interval(values: Sequence[float], samples: int, seed: int, level: float = 0.95) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean over rows; None for fewer than two rows, which show no spread.

    For paired data, pass one difference a row.
    """
    if len(values) < 2:
        return None
    tail = (1 - level) / 2
    low, high = np.quantile(bootstrap_means(values, samples, seed), [tail, 1 - tail])
    return float(low), float(high)


def ratio_interval(
    totals: Sequence[float], weights: Sequence[float], samples: int, seed: int, level: float = 0.95
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of sum(totals) / sum(weights) over rows, drawn together; None below two rows.

    Resamples in which all weights are 0 have no ratio, and do not count.
    """
    if len(weights) < 2:
        return None
    ratios = _bootstrap_ratios(totals, weights, samples, seed)
    return _percentiles(ratios, level)


def ratio_difference_interval(
    first: tuple[Sequence[float], Sequence[float]],
    second: tuple[Sequence[float], Sequence[float]],
    samples: int,
    seed: int,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """The same of the difference of two such ratios, each of totals and weights, over rows that are paired."""
    if len(first[1]) < 2:
        return None
    # The same seed draws the same rows twice.
    return _percentiles(_bootstrap_ratios(*first, samples, seed) - _bootstrap_ratios(*second, samples, seed), level)


def _bootstrap_ratios(totals: Sequence[float], weights: Sequence[float], samples: int, seed: int) -> Vector:
    """NaN where a resample has no ratio."""
    below = bootstrap_means(weights, samples, seed)
    ratios = np.full_like(below, np.nan)
    np.divide(bootstrap_means(totals, samples, seed), below, out=ratios, where=below > 0)
    return ratios


def _percentiles(values: Vector, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = np.quantile(values[~np.isnan(values)], [tail, 1 - tail])
    return float(low), float(high)


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of the mean of a few independent values, such as one a seed; None for fewer than two."""
    from scipy.special import stdtrit

    count = len(values)
    if count < 2:
        return None
    mean, error = mean_and_error(values)
    half = float(stdtrit(count - 1, (1 + level) / 2)) * error
    return mean - half, mean + half


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean of at least two independent values, and its standard error."""
    count = len(values)
    mean = math.fsum(values) / count
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)


def t_test(mean: float, error: float, count: int, margin: float | None = None) -> float:
    """The p-value of Student's test that the true mean is 0, two-sided; with a margin, of two one-sided tests that it
    is no nearer to 0 than that, so that a small one speaks for equality."""
    from scipy.special import stdtr

    if margin is not None:
        return max(_upper_tail(margin + mean, error, count), _upper_tail(margin - mean, error, count))
    if error == 0:
        return float(mean == 0)
    return 2 * float(stdtr(count - 1, -abs(mean) / error))


def _upper_tail(distance: float, error: float, count: int) -> float:
    from scipy.special import stdtr

    return float(distance <= 0) if error == 0 else float(stdtr(count - 1, -distance / error))


def error_behind(interval: tuple[float, float], count: int, level: float = 0.95) -> float:
    """The standard error of the mean that Student's interval is of."""
    from scipy.special import stdtrit

    return (interval[1] - interval[0]) / 2 / float(stdtrit(count - 1, (1 + level) / 2))


class LengthAdjustedRate(NamedTuple):
    """A length-controlled win rate in percent, with its 95% bootstrap interval over prompts."""

    rate: float
    low: float
    high: float


def length_adjusted_rate(
    scores: Sequence[float], lengths: Sequence[int], baseline_lengths: Sequence[int], samples: int, seed: int
) -> LengthAdjustedRate | None:
    """Length-controlled win rate: what a logistic fit predicts for answers as long as the baseline's.

    P(win) = sigmoid(a + b x), x = tanh((length - baseline length) / deviation of that difference); the rate is
    100 sigmoid(a). `scores` are a prompt's mean over its games, 0 to 1. None with fewer than two prompts.
    """
    from scipy.special import expit

    if len(scores) < 2:
        return None
    difference = np.asarray(lengths, dtype=np.float64) - np.asarray(baseline_lengths, dtype=np.float64)
    spread = difference.std()
    x = np.tanh(difference / spread) if spread > 0 else np.zeros_like(difference)
    y = np.asarray(scores, dtype=np.float64)
    fitted = _logistic_fits(np.ones((1, len(y))), x, y, np.zeros((1, 2)))
    generator = np.random.default_rng(seed)
    at_once = max(1, _CELLS_AT_ONCE // len(y))
    resampled = []
    for start in range(0, samples, at_once):
        drawn = generator.multinomial(len(y), np.full(len(y), 1 / len(y)), min(at_once, samples - start))
        resampled.append(_logistic_fits(drawn.astype(np.float64), x, y, fitted)[:, 0])
    low, high = expit(np.quantile(np.concatenate(resampled), [0.025, 0.975]))
    return LengthAdjustedRate(100 * float(expit(fitted[0, 0])), 100 * float(low), 100 * float(high))


def _logistic_fits(counts: Matrix, x: Vector, y: Vector, start: Matrix) -> Matrix:
    """(a, b) for each row of `counts`, which says how often each prompt was drawn: all by Newton's method at once."""
    from scipy.special import expit

    a, b = np.broadcast_to(start, (len(counts), 2)).T.copy()
    for _ in range(_NEWTON_STEPS):
        p = expit(a[:, None] + b[:, None] * x)
        off = counts * (p - y)
        gradient_a, gradient_b = off.sum(axis=1) + _RIDGE * a, off @ x + _RIDGE * b
        weight = counts * (p * (1 - p))
        aa, ab, bb = weight.sum(axis=1) + _RIDGE, weight @ x, weight @ (x * x) + _RIDGE
        determinant = aa * bb - ab * ab
        step_a = (bb * gradient_a - ab * gradient_b) / determinant
        step_b = (aa * gradient_b - ab * gradient_a) / determinant
        a -= np.clip(step_a, -2, 2)
        b -= np.clip(step_b, -2, 2)
        if max(np.abs(step_a).max(), np.abs(step_b).max()) < 1e-9:
            break
    return np.stack([a, b], axis=1)


class PairedTest(NamedTuple):
    """The difference of two win rates over the same prompts, in points."""

    difference: float
    low: float
    high: float
    p_value: float


def paired_test(first: Sequence[float], second: Sequence[float], samples: int, seed: int) -> PairedTest | None:
    """Exact paired sign-flip test, and a bootstrap interval of the mean difference over prompts; None below two.

    Scores are means of at most two games, so that they and their differences are quarters.
    """
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    interval = mean_interval(differences.tolist(), samples, seed)
    if interval is None:
        return None
    p_value = _sign_flips(differences)
    return PairedTest(100 * float(differences.mean()), 100 * interval[0], 100 * interval[1], p_value)


def _sign_flips(differences: Vector) -> float:
    """The share of all ways to flip the signs of differences whose sum is as far from 0 as the observed one.

    k differences of the size m add up to m (2 heads - k), with heads of k coins; sizes add up by convolution.
    """
    quarters = np.rint(4 * differences)
    if not np.allclose(quarters, 4 * differences, rtol=0, atol=1e-9):
        raise ValueError("a score is the mean of at most two games, so differences are quarters")
    sums = np.ones(1)
    for size, count in Counter(np.abs(quarters[quarters != 0]).astype(int).tolist()).items():
        spaced = np.zeros(2 * size * count + 1)
        spaced[:: 2 * size] = _binomial_half(count)
        sums = np.convolve(sums, spaced)
    reach = len(sums) // 2
    far = np.abs(np.arange(-reach, reach + 1)) >= abs(quarters.sum())
    return min(1.0, math.fsum(sums[far]))


def _binomial_half(coins: int) -> Vector:
    """The binomial distribution of the heads of fair coins, in logarithms: the counts of many coins overflow."""
    from scipy.special import gammaln

    heads = np.arange(coins + 1)
    ways = gammaln(coins + 1) - gammaln(heads + 1) - gammaln(coins - heads + 1)
    return np.asarray(np.exp(ways - coins * math.log(2)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: p-values adjusted for as many comparisons as there are."""
    count = len(p_values)
    adjusted = [0.0] * count
    highest = 0.0
    for rank, i in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (count - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
