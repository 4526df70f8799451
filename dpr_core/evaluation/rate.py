"""Single-answer rating from 1 to 10: MT-Bench's official score with a bootstrap confidence interval."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from dpr_core.config.evaluation import JudgeExecutionConfig
from dpr_core.evaluation.ask import REFUSED, Details, Judge, judge_all
from dpr_core.evaluation.categories import CategoryScore, by_category
from dpr_core.evaluation.endpoint import Messages
from dpr_core.evaluation.official import mt_bench
from dpr_core.evaluation.official.layouts import mt_bench_id
from dpr_core.evaluation.questions import Question
from dpr_core.stats import ratio_interval

LOWEST, HIGHEST = 1.0, 10.0


@dataclass(frozen=True)
class Turn:
    """The answer to one turn of a question, after those to the turns before it."""

    question: Question
    answers: tuple[str, ...]
    """To the first so many turns. The last of them is what is rated."""
    judging: int = 1
    """Which of several ratings of the same."""

    @property
    def number(self) -> int:
        """Which turn it is, counted from 1."""
        return len(self.answers)

    @property
    def references(self) -> tuple[str, ...]:
        """Reference answers to these turns, where the question has any."""
        return self.question.references[: self.number]


@dataclass(frozen=True)
class Rating:
    """A score from 1 to 10, None where none could be read, with what was asked and what was said."""

    score: float | None
    raw: str
    template: str
    """Name of the instructions."""
    shown: str
    """The message with the conversation, the same each time that the same is asked."""
    details: Details = field(default_factory=dict)

    @property
    def value(self) -> str | None:
        return None if self.score is None else str(self.score)


Rater = Judge[Turn, Rating]

Rated = Sequence[tuple[Turn, Rating]]


class RatingTemplate(Protocol):
    """Instructions for a rating, and how it is read from the reply."""

    def name(self, turn: Turn) -> str: ...

    def messages(self, turn: Turn) -> Messages: ...

    def shown(self, turn: Turn) -> str:
        """The message with the conversation, the same each time that the same is asked."""
        ...

    def score(self, reply: str) -> float | None: ...


class RatingPrompt:
    """Asks for a rating of a turn in which no answer is longer than so many characters."""

    schema = None

    def __init__(self, template: RatingTemplate, most_characters: int) -> None:
        self._template = template
        self._most_characters = most_characters

    def messages(self, turn: Turn, as_json: bool = False) -> Messages:
        return self._template.messages(self._within_limit(turn))

    def answers_cut(self, turn: Turn) -> int:
        return sum(len(text) > self._most_characters for text in turn.answers)

    def read(self, reply: str, as_json: bool) -> str | None:
        score = self._template.score(reply)
        return None if score is None else str(score)

    def judgment(self, turn: Turn, value: str | None, raw: str, details: Details) -> Rating:
        score = None if value is None else float(value)
        if score is not None and on_scale(score) is None:
            raise ValueError(f"{value} is off the scale")
        shown = self._template.shown(self._within_limit(turn))
        return Rating(score, raw, self._template.name(turn), shown, details)

    def _within_limit(self, turn: Turn) -> Turn:
        return replace(turn, answers=tuple(text[: self._most_characters] for text in turn.answers))


def turns_of(answered: Iterable[tuple[Question, tuple[str, ...]]], judgings: int = 1) -> list[Turn]:
    """Every turn of every answer, `judgings` times."""
    return [
        Turn(question, answers[:number], judging)
        for question, answers in answered
        for number in range(1, len(answers) + 1)
        for judging in range(1, judgings + 1)
    ]


async def rate_turns(
    rater: Rater,
    turns: Sequence[Turn],
    execution: JudgeExecutionConfig,
    on_progress: Callable[[int, int, str], None],
    ask_again: bool = True,
) -> list[tuple[Turn, Rating]]:
    """Every turn with its rating. One that cannot be read in the end is none, as in MT-Bench."""
    ratings: dict[int, Rating] = {}
    await judge_all(rater, turns, execution, on_progress, ratings.__setitem__, ask_again)
    return [(turn, ratings[i]) for i, turn in enumerate(turns)]


def on_scale(score: float) -> float | None:
    """A score on the scale; anything else is none."""
    return score if LOWEST <= score <= HIGHEST else None


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
    by_category: dict[str, CategoryScore] = field(default_factory=dict)
    """The average in each category, where there are several, with its interval over questions."""

    @property
    def unscored_share(self) -> float:
        return self.unscored / self.n if self.n else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON values; without categories there is none of them."""
        values = asdict(self)
        return values if self.by_category else {name: values[name] for name in values if name != "by_category"}

    def as_metrics(self) -> dict[str, float]:
        """The numbers by the names under which they are logged."""
        return {f"rate/{name}": float(value) for name, value in asdict(self).items() if isinstance(value, int | float)}


def as_rows(rated: Rated, model: str, judge: str) -> list[dict[str, Any]]:
    """Rows of FastChat's `model_judgment`, and two fields more that its tools pay no heed to."""
    return [
        {
            "question_id": mt_bench_id(turn.question.id),
            "model": model,
            "judge": [judge, rating.template],
            "user_prompt": rating.shown,
            "judgment": mt_bench.FAILED if REFUSED in rating.details else rating.raw,
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
    by_question: dict[str, list[float]] = {turn.question.id: [] for turn, _ in rated}
    categories = {turn.question.id: turn.question.category for turn, _ in rated}
    for turn, rating in rated:
        if rating.score is not None:
            by_question[turn.question.id].append(rating.score)
    low, high = interval(by_question.values(), bootstrap_samples, seed) or (None, None)
    grouped = [(categories[name], scores) for name, scores in by_question.items()]
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
        by_category=by_category(grouped, bootstrap_samples, seed),
    )


def interval(by_question: Iterable[Sequence[float]], samples: int, seed: int) -> tuple[float, float] | None:
    """95% bootstrap interval of the mean of all ratings; all ratings of a question are drawn together."""
    groups = [group for group in by_question if group]
    return ratio_interval([sum(group) for group in groups], [len(group) for group in groups], samples, seed)


def _as_written(score: float | None) -> float:
    """FastChat's -1 for what cannot be read, and whole numbers without a point."""
    if score is None:
        return mt_bench.UNREADABLE
    return int(score) if score == int(score) else score
