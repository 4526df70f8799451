"""Scores by category of the questions, each with a bootstrap confidence interval and a count."""

from array import array
from collections.abc import Iterable, Sequence
from typing import TypedDict

from dpr_core.stats import ratio_interval


class CategoryScore(TypedDict):
    """Mean of all values in one category; the interval is one over prompts, None for fewer than two of them."""

    mean: float
    low: float | None
    high: float | None
    prompts: int


def by_category(
    prompts: Iterable[tuple[str, Sequence[float]]], samples: int, seed: int, scale: float = 1.0
) -> dict[str, CategoryScore]:
    """Of the category and the values of each prompt; nothing where no two prompts are of different categories."""
    totals: dict[str, array[float]] = {}
    counts: dict[str, array[int]] = {}
    for category, values in prompts:
        of_category = totals.setdefault(category, array("d")), counts.setdefault(category, array("i"))
        if values:
            of_category[0].append(sum(values))
            of_category[1].append(len(values))
    if len(totals) < 2:
        return {}
    return {
        category: _score(totals[category], counts[category], samples, seed, scale)
        for category in sorted(totals)
        if category and totals[category]
    }


def _score(totals: Sequence[float], counts: Sequence[int], samples: int, seed: int, scale: float) -> CategoryScore:
    low, high = ratio_interval(totals, counts, samples, seed) or (None, None)
    return {
        "mean": scale * sum(totals) / sum(counts),
        "low": None if low is None else scale * low,
        "high": None if high is None else scale * high,
        "prompts": len(totals),
    }
