"""Matching by root finding: the strength at which a measure of drawn answers comes to a target, in few trials."""

from collections.abc import Callable
from math import inf, isfinite, sqrt
from typing import NamedTuple

from scipy.optimize import brentq

FURTHER = 4.0
"""A strength is raised at most so many times at once."""


class Match(NamedTuple):
    strength: float
    reached: float
    trials: int


def match(
    measure: Callable[[float], float], target: float, start: float, most: float, tolerance: float, trials: int
) -> Match:
    """The tried strength, between 0 and `most`, whose measure is nearest to the target. The measure rises with the
    strength and is 0 at 0; near there it goes with a power, so that its square root is easier to follow.

    Ends once a measure is within that share of the target, or is too low at `most`.
    """
    tried: dict[float, float] = {}

    def gap(strength: float) -> float:
        if strength == 0:
            return -sqrt(target)
        if strength not in tried:
            if len(tried) == trials:
                return 0.0
            measured = measure(strength)
            tried[strength] = measured if isfinite(measured) else inf
        near = abs(tried[strength] - target) <= tolerance * target
        # Exactly 0 ends the search.
        return 0.0 if near else min(sqrt(max(tried[strength], 0.0)), 9 * sqrt(target)) - sqrt(target)

    if target <= 0:
        return Match(0.0, 0.0, 0)
    low, high = 0.0, min(start, most)
    while (short := gap(high)) < 0 and high < most and len(tried) < trials:
        further = high * min(FURTHER, max(1.2, 1.05 * sqrt(target / max(tried[high], target / FURTHER**2))))
        low, high = high, min(further, most)
    if short > 0:
        brentq(gap, low, high, xtol=1e-6, maxiter=2 * trials, disp=False)
    best = min(tried, key=lambda strength: abs(tried[strength] - target))
    return Match(best, tried[best], len(tried))
