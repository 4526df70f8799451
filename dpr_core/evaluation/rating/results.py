"""Ratings as FastChat's rows, and what they come to."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dpr_core.evaluation.official import mt_bench
from dpr_core.evaluation.official.layouts import mt_bench_id
from dpr_core.evaluation.rating.rater import Rating, Turn
from dpr_core.stats import bootstrap_means

Rated = Sequence[tuple[Turn, Rating]]


@dataclass(frozen=True)
class Ratings:
    """One model's ratings, from 1 to 10. Those that could not be read count for nothing."""

    turn1: float | None
    turn2: float | None
    average: float | None
    """Mean of all readable ratings: MT-Bench's official score."""
    low: float | None
    """Lower end of the 95% bootstrap interval of the average over questions; None with fewer than two questions."""
    high: float | None
    categories: dict[str, float]
    median_of_judgings: float | None
    """The median over the judgings of each turn, then the mean over turns and questions."""
    judgings: int
    questions: int
    n: int
    """Ratings asked for."""
    unscored: int
    """How many of them could not be read."""

    @property
    def unscored_share(self) -> float:
        return self.unscored / self.n if self.n else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    def as_metrics(self) -> dict[str, float]:
        """The numbers by the names under which they are logged."""
        return {f"rate/{name}": float(value) for name, value in asdict(self).items() if isinstance(value, int | float)}


def as_rows(rated: Rated, model: str, judge: str) -> list[dict[str, Any]]:
    """Rows of FastChat's `model_judgment`, and two fields more that its tools pay no heed to."""
    return [
        {
            "question_id": mt_bench_id(turn.question.id),
            "model": model,
            "judge": [judge, rating.request.template],
            "user_prompt": rating.request.shown,
            "judgment": rating.raw,
            "score": _as_written(rating.score),
            "turn": turn.number,
            "judging": turn.judging,
            "details": dict(rating.details),
        }
        for turn, rating in rated
    ]


def summarise(rated: Rated, bootstrap_samples: int, seed: int) -> Ratings:
    """MT-Bench's official scores of the rows, an interval, and the median over several judgings."""
    model = "rated"
    rows = as_rows(rated, model, "")
    questions = {
        mt_bench_id(turn.question.id): {"turns": turn.question.turns, "category": turn.question.category}
        for turn, _ in rated
    }
    asked = [{"question_id": name, **question} for name, question in questions.items()]
    found = mt_bench.score(rows, [], asked)[model]
    by_question: dict[str, list[float]] = defaultdict(list)
    for turn, rating in rated:
        if rating.score is not None:
            by_question[turn.question.id].append(rating.score)
    low, high = interval(by_question.values(), bootstrap_samples, seed) or (None, None)
    return Ratings(
        turn1=found.official["turn1"],
        turn2=found.official["turn2"],
        average=found.official["average"],
        low=low,
        high=high,
        categories=found.official["categories"],
        median_of_judgings=found.paper["median_of_judgings"],
        judgings=max((turn.judging for turn, _ in rated), default=0),
        questions=len(questions),
        n=found.n,
        unscored=found.unscored,
    )


def interval(by_question: Iterable[Sequence[float]], samples: int, seed: int) -> tuple[float, float] | None:
    """95% bootstrap interval of the mean of all ratings; all ratings of a question are drawn together."""
    groups = [group for group in by_question if group]
    if len(groups) < 2:
        return None
    # The same seed draws the same questions twice, so this is the mean rating of each draw.
    sums = bootstrap_means([sum(group) for group in groups], samples, seed)
    counts = bootstrap_means([len(group) for group in groups], samples, seed)
    low, high = np.quantile(sums / counts, [0.025, 0.975])
    return float(low), float(high)


def _as_written(score: float | None) -> float:
    """FastChat's -1 for what cannot be read, and whole numbers without a point."""
    if score is None:
        return mt_bench.UNREADABLE
    return int(score) if score == int(score) else score
