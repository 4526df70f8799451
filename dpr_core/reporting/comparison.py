"""Beyond the plain win rate: a rate at equal lengths, and the paired test of two policies against one baseline."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpr_core.reporting.statistics import mean_interval

Vector = NDArray[np.float64]

STEPS = 50
RIDGE = 1e-3
"""A little pull towards 0, without which a policy that always wins has no finite fit."""


class Rate(NamedTuple):
    """In percent, with its 95% bootstrap interval over prompts."""

    rate: float
    low: float
    high: float


def length_adjusted_rate(
    scores: Sequence[float], lengths: Sequence[int], baseline_lengths: Sequence[int], samples: int, seed: int
) -> Rate | None:
    """The win rate that a logistic fit predicts for answers as long as the baseline's.

    P(win) = sigmoid(a + b x), x = tanh((length - baseline length) / deviation of that difference); the rate is
    100 sigmoid(a). `scores` are a prompt's mean over its games, 0 to 1. None with fewer than two prompts.
    """
    if len(scores) < 2:
        return None
    difference = np.asarray(lengths, dtype=np.float64) - np.asarray(baseline_lengths, dtype=np.float64)
    spread = difference.std()
    x = np.tanh(difference / spread) if spread > 0 else np.zeros_like(difference)
    y = np.asarray(scores, dtype=np.float64)
    generator = np.random.default_rng(seed)
    resampled = [_at_equal_length(y[rows], x[rows]) for rows in generator.integers(0, len(y), (samples, len(y)))]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Rate(100 * _at_equal_length(y, x), 100 * float(low), 100 * float(high))


def _at_equal_length(y: Vector, x: Vector) -> float:
    """sigmoid(a) of the fit, by Newton's method."""
    inputs = np.stack([np.ones_like(x), x], axis=1)
    weights = np.zeros(2)
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-inputs @ weights))
        gradient = inputs.T @ (p - y) + RIDGE * weights
        curvature = (inputs * (p * (1 - p))[:, None]).T @ inputs + RIDGE * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        weights -= np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-10:
            break
    return float(1 / (1 + np.exp(-weights[0])))


class PairedTest(NamedTuple):
    """The difference of two win rates over the same prompts, in points."""

    difference: float
    low: float
    high: float
    p_value: float


def paired_test(first: Sequence[float], second: Sequence[float], samples: int, seed: int) -> PairedTest | None:
    """Bootstrap interval of the mean difference over prompts, and the p-value of random sign flips. None below two."""
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    interval = mean_interval(differences.tolist(), samples, seed)
    if interval is None:
        return None
    generator = np.random.default_rng(seed)
    signs = generator.choice([-1.0, 1.0], (samples, len(differences)))
    flipped = np.abs((signs * differences).mean(axis=1))
    # The observed arrangement is one of those that are possible.
    as_far = int((flipped >= abs(differences.mean()) - 1e-12).sum())
    p_value = (as_far + 1) / (samples + 1)
    return PairedTest(100 * float(differences.mean()), 100 * interval[0], 100 * interval[1], p_value)
