"""Intervals: over prompts by resampling, over seeds by Student's t."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_INDICES_AT_ONCE = 2**22


def bootstrap_means(values: Sequence[float], samples: int, seed: int) -> NDArray[np.float64]:
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


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of the mean of a few independent values, such as one a seed; None for fewer than two."""
    from scipy import special

    count = len(values)
    if count < 2:
        return None
    mean = math.fsum(values) / count
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(special.stdtrit(count - 1, (1 + level) / 2)) * deviation / math.sqrt(count)
    return mean - half, mean + half
