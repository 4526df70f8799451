"""Pairwise judging with position swap: win rate with a bootstrap confidence interval, and position bias."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

from dpr_core.config.evaluation import JudgeExecutionConfig
from dpr_core.evaluation.ask import Details, Judge, judge_all
from dpr_core.evaluation.categories import CategoryScore, by_category
from dpr_core.evaluation.questions import Question
from dpr_core.stats import mean_interval


@dataclass(frozen=True, slots=True)
class Answer:
    """One policy's answer: a text for each turn of the question."""

    turns: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> "Answer":
        """The answer to a single-turn question."""
        return cls((text,))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to one question, in the order in which the judge sees them."""

    question: Question
    first: Answer
    second: Answer


class Verdict(StrEnum):
    """Which answer is better, by position. Unreadable is no verdict: it is counted, and scored as nothing."""

    FIRST = "first"
    SECOND = "second"
    TIE = "tie"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Judgment:
    """A verdict, the judge's own words, and what an endpoint told about its work (model, fingerprint, tokens)."""

    verdict: Verdict
    raw: str
    details: Details = field(default_factory=dict)
    label: str = ""
    """What the judge said, where its prompts know more than three verdicts, such as A>>B."""

    @property
    def value(self) -> str | None:
        return None if self.verdict is Verdict.UNREADABLE else self.label or self.verdict.value


PairwiseJudge = Judge[Comparison, Judgment]


@dataclass(frozen=True, slots=True)
class Pair:
    """The candidate's and the baseline's answer to one question."""

    question: Question
    candidate: Answer
    baseline: Answer
    turn: int = 0
    """Which turn is judged, where each is by itself, after those before it; 0 where all are judged together."""

    def shown(self, candidate_first: bool) -> Comparison:
        """The pair in one of its two orders."""
        if candidate_first:
            return Comparison(self.question, first=self.candidate, second=self.baseline)
        return Comparison(self.question, first=self.baseline, second=self.candidate)


@dataclass(frozen=True, slots=True)
class Game:
    """One judged order of a pair."""

    question_id: str
    candidate_first: bool
    verdict: Verdict
    raw: str
    details: Details = field(default_factory=dict)
    label: str = ""
    """As in `Judgment`."""
    turn: int = 0
    """As in `Pair`."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The game that `as_dict` made these values of."""
        verdict = Verdict(values["verdict"])
        who, said = (values["question_id"], values["candidate_first"]), (values["raw"], values["details"])
        return cls(*who, verdict, *said, values.get("label", ""), values.get("turn", 0))

    @property
    def value(self) -> str | None:
        return None if self.verdict is Verdict.UNREADABLE else self.verdict.value

    @property
    def score(self) -> float | None:
        """1 where the candidate won, 0 where it lost, 0.5 for a tie, None where the verdict cannot be read."""
        if self.verdict is Verdict.UNREADABLE:
            return None
        if self.verdict is Verdict.TIE:
            return 0.5
        return float((self.verdict is Verdict.FIRST) == self.candidate_first)

    def as_dict(self) -> dict[str, Any]:
        """The game as a row of a JSONL file."""
        return {
            "question_id": self.question_id,
            "candidate_first": self.candidate_first,
            "verdict": self.verdict.value,
            "score": self.score,
            "raw": self.raw,
            "details": dict(self.details),
            **({"label": self.label} if self.label else {}),
            **({"turn": self.turn} if self.turn else {}),
        }


@dataclass(frozen=True)
class WinRate:
    """The candidate against the baseline. Rates and shares lie between 0 and 1, the win rate in 0-100."""

    win_rate: float | None
    """Mean over prompts of the mean of their readable games, ties 0.5, in percent; None where none is readable."""
    low: float | None
    """Lower end of the 95% bootstrap interval over prompts; None with fewer than two prompts."""
    high: float | None
    wins: int
    """Games, not prompts; so are ties, losses and unreadable."""
    ties: int
    losses: int
    unreadable: int
    unreadable_share: float
    contradiction_rate: float | None
    """Share of prompts (or of their turns), among those with two readable games, whose two orders end differently."""
    first_position_rate: float | None
    """Share of decided games won by the answer shown first; 0.5 for a judge without position bias."""
    prompts: int
    scored_prompts: int
    """Prompts with at least one readable game."""
    by_category: dict[str, CategoryScore] = field(default_factory=dict)
    """The win rate in each category of the questions, where there are several."""

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON values; without categories there is none of them."""
        values = asdict(self)
        return values if self.by_category else {name: values[name] for name in values if name != "by_category"}


async def judge_pairs(
    judge: PairwiseJudge,
    pairs: Sequence[Pair],
    execution: JudgeExecutionConfig,
    on_progress: Callable[[int, int, str], None],
    ask_again: bool = True,
) -> list[Game]:
    """Judge every pair in both orders; both games of a pair stand together. The rest is as in `judge_all`."""
    plan = [(pair, candidate_first) for pair in pairs for candidate_first in (True, False)]
    judgments = await judge_all(judge, [pair.shown(first) for pair, first in plan], execution, on_progress, ask_again)
    return [
        Game(pair.question.id, first, judgment.verdict, judgment.raw, judgment.details, judgment.label, pair.turn)
        for (pair, first), judgment in zip(plan, judgments, strict=True)
    ]


def summarise(games: Iterable[Game], bootstrap_samples: int, seed: int, questions: Iterable[Question] = ()) -> WinRate:
    """The win rate and all that is needed to trust it; by category, too, where the questions are given."""
    by_prompt = _by_prompt(games)
    results = [[game.score for game in played] for played in by_prompt.values()]
    readable = [[score for score in scores if score is not None] for scores in results]
    means = [sum(scores) / len(scores) for scores in readable if scores]
    scores = [score for prompt in readable for score in prompt]
    total = sum(len(prompt) for prompt in results)
    every = [game for played in by_prompt.values() for game in played]
    orders: dict[tuple[str, int], list[float]] = {}
    for game in every:
        if (score := game.score) is not None:
            orders.setdefault((game.question_id, game.turn), []).append(score)
    both = [pair for pair in orders.values() if len(pair) == 2]
    decided = [game for game in every if game.verdict in _DECIDED]
    interval = mean_interval(means, bootstrap_samples, seed)
    categories = {question.id: question.category for question in questions}
    grouped = [
        (categories.get(name, ""), [sum(scores) / len(scores)] if scores else [])
        for name, scores in zip(by_prompt, readable, strict=True)
    ]
    return WinRate(
        win_rate=_percent(_share(sum(means), len(means))),
        low=_percent(interval[0]) if interval else None,
        high=_percent(interval[1]) if interval else None,
        wins=scores.count(1.0),
        ties=scores.count(0.5),
        losses=scores.count(0.0),
        unreadable=total - len(scores),
        unreadable_share=(total - len(scores)) / total if total else 0.0,
        contradiction_rate=_share(sum(first != second for first, second in both), len(both)),
        first_position_rate=_share(sum(game.verdict is Verdict.FIRST for game in decided), len(decided)),
        prompts=len(by_prompt),
        scored_prompts=len(means),
        by_category=by_category(grouped, bootstrap_samples, seed, 100),
    )


def answers_cut(games: Iterable[Game]) -> int:
    """How many answers the judge saw only the beginning of. Each is counted in one of the games that show it whole."""
    whole = {game.question_id: game for game in games if game.candidate_first}
    return sum(int(game.details.get("answers_cut", 0)) for game in whole.values())


_DECIDED = (Verdict.FIRST, Verdict.SECOND)


def _by_prompt(games: Iterable[Game]) -> dict[str, list[Game]]:
    by_prompt: dict[str, list[Game]] = {}
    for game in games:
        played = by_prompt.setdefault(game.question_id, [])
        if any((other.candidate_first, other.turn) == (game.candidate_first, game.turn) for other in played):
            raise ValueError(f"question {game.question_id} was judged twice in the same order")
        played.append(game)
    return by_prompt


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
