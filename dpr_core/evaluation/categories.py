"""Scores by category of the questions, each with a bootstrap confidence interval and a count."""

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
    groups: dict[str, list[Sequence[float]]] = {}
    for category, values in prompts:
        groups.setdefault(category, []).append(values)
    if len(groups) < 2:
        return {}
    return {
        category: _score([values for values in groups[category] if values], samples, seed, scale)
        for category in sorted(groups)
        if category and any(groups[category])
    }


def _score(prompts: Sequence[Sequence[float]], samples: int, seed: int, scale: float) -> CategoryScore:
    totals, counts = [sum(values) for values in prompts], [len(values) for values in prompts]
    low, high = ratio_interval(totals, counts, samples, seed) or (None, None)
    return {
        "mean": scale * sum(totals) / sum(counts),
        "low": None if low is None else scale * low,
        "high": None if high is None else scale * high,
        "prompts": len(prompts),
    }
