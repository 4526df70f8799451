"""Gold measures of a benchmark: a number an answer, pooled over the answers, with a bootstrap interval over prompts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dpr_core.evaluation.questions import Question
from dpr_core.stats import ratio_difference_interval, ratio_interval

Values = Mapping[str, float]
"""By the name of the measure."""

RESAMPLES = 2000


class Measure(NamedTuple):
    """One number an answer. Pooled it is the mean over the answers that have it, each with its own weight."""

    name: str
    title: str
    """For a table."""
    weight: str | None = None
    """The value of the same answer that weighs it, such as how many equations it states; none weighs all alike."""
    is_share: bool = True
    of: str | None = None
    """The value that it is made of, where that is not its own."""
    shown: Callable[[float], float] = float
    """What is made of the pooled value: a monotone function, so that the interval goes with it."""
    more_is_better: bool = True


@dataclass(frozen=True)
class Gold:
    """What is measured of the answers to a benchmark."""

    measures: tuple[Measure, ...]
    """The primary one first."""
    of_answer: Callable[[Question, str], Values] | None = None
    """None where there are no answers: the policy scores what is given."""
    of_answers: Callable[[Sequence[tuple[Question, str]]], Values] | None = None
    """What is no mean over answers, such as BLEU."""


class Estimate(NamedTuple):
    """A pooled measure with its 95% bootstrap interval over prompts, where there is one."""

    value: float
    low: float | None
    high: float | None


def pooled(gold: Gold, rows: Sequence[Values], seed: int = 0) -> dict[str, Estimate]:
    """The measures over all answers, in their order; none of those that no answer has."""
    found = {measure.name: _pooled(measure, rows, seed) for measure in gold.measures}
    return {name: estimate for name, estimate in found.items() if estimate is not None}


def _pooled(measure: Measure, rows: Sequence[Values], seed: int) -> Estimate | None:
    name = measure.of or measure.name
    have = [row for row in rows if name in row]
    weights = [row[measure.weight] if measure.weight else 1.0 for row in have]
    if not sum(weights):
        return None
    totals = [row[name] * weight for row, weight in zip(have, weights, strict=True)]
    interval = ratio_interval(totals, weights, RESAMPLES, seed)
    low, high = map(measure.shown, interval) if interval else (None, None)
    return Estimate(measure.shown(sum(totals) / sum(weights)), low, high)


def shares(measures: Sequence[Measure], rows: Sequence[Values]) -> dict[str, float]:
    """The pooled value of every measure that is a share and that any answer has."""
    weighed = {each.name: _weighed(each, rows) for each in measures if each.is_share}
    return {name: sum(totals) / sum(weights) for name, (totals, weights) in weighed.items() if sum(weights)}


def differences(
    measures: Sequence[Measure], ours: Sequence[Values], theirs: Sequence[Values], seed: int = 0
) -> dict[str, Estimate]:
    """How far the pooled shares of one policy lie above those of another that answered the same prompts, which are
    drawn together."""
    mine, its = shares(measures, ours), shares(measures, theirs)
    found = {}
    for measure in measures:
        if measure.name in mine and measure.name in its:
            first, second = _weighed(measure, ours), _weighed(measure, theirs)
            low, high = ratio_difference_interval(first, second, RESAMPLES, seed) or (None, None)
            found[measure.name] = Estimate(mine[measure.name] - its[measure.name], low, high)
    return found


def _weighed(measure: Measure, rows: Sequence[Values]) -> tuple[list[float], list[float]]:
    """Of every answer, its value times its weight, and the weight: 0 where it has no value."""
    name = measure.of or measure.name
    weights = [(row[measure.weight] if measure.weight else 1.0) if name in row else 0.0 for row in rows]
    return [row.get(name, 0.0) * weight for row, weight in zip(rows, weights, strict=True)], weights


def answers_cut(rows: Sequence[Mapping[str, Any]]) -> int:
    """Answers that a gold measure was taken of although they were cut at the length limit."""
    return sum(bool(row.get("gold")) and bool(row["cut"]) for row in rows)


def cut_warning(cut: int, answers: int) -> str | None:
    """Answers that were cut may have stated a result later."""
    if not cut:
        return None
    return (
        f"{cut:,} of the {answers:,} answers were cut at answer.max_response_tokens and measured as they are: what "
        "they would have stated later counts as missing"
    )
