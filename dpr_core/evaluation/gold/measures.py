"""Gold measures of a benchmark: a number an answer, pooled over the answers, with a bootstrap interval over prompts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dpr_core.evaluation.questions import Question
from dpr_core.stats import ratio_interval

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
