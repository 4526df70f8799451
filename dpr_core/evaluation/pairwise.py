"""Pairwise judging with position swap: win rate with a bootstrap confidence interval, and position bias."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Self, TypeVar, overload

from dpr_core.config.evaluation import JudgeExecutionConfig
from dpr_core.evaluation.ask import Details, Judge, judge_all
from dpr_core.evaluation.categories import CategoryScore, by_category
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.spool import Spool
from dpr_core.stats import mean_interval

T = TypeVar("T")


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


class InBothOrders(Sequence[T]):
    """Something of each pair in both of its orders, side by side, the candidate first in the first of them.

    It is made whenever it is asked for, so that memory need not hold it.
    """

    def __init__(self, pairs: Sequence[Pair], made: Callable[[int, Pair, bool], T]) -> None:
        self._pairs = pairs
        self._made = made

    def __len__(self) -> int:
        return 2 * len(self._pairs)

    @overload
    def __getitem__(self, i: int) -> T: ...
    @overload
    def __getitem__(self, i: slice) -> list[T]: ...
    def __getitem__(self, i: int | slice) -> T | list[T]:
        if isinstance(i, slice):
            return [self[each] for each in range(*i.indices(len(self)))]
        return self._made(i, self._pairs[i // 2], i % 2 == 0)


async def judge_pairs(
    judge: PairwiseJudge,
    pairs: Sequence[Pair],
    execution: JudgeExecutionConfig,
    on_progress: Callable[[int, int, str], None],
    ask_again: bool = True,
    folder: Path | None = None,
) -> Sequence[Game]:
    """Judge every pair in both orders; both games of a pair stand together. The rest is as in `judge_all`.

    What the judge says is not in memory, which it would fill, but in a temporary file in `folder`.
    """
    said = Spool(2 * len(pairs), folder)

    def keep(i: int, judgment: Judgment) -> None:
        said[i] = judgment.verdict, judgment.raw, dict(judgment.details), judgment.label

    def game(i: int, pair: Pair, first: bool) -> Game:
        verdict, raw, details, label = said[i]
        return Game(pair.question.id, first, Verdict(verdict), raw, details, label, pair.turn)

    shown = InBothOrders(pairs, lambda i, pair, first: pair.shown(first))
    await judge_all(judge, shown, execution, on_progress, keep, ask_again)
    return InBothOrders(pairs, game)


def summarise(games: Iterable[Game], bootstrap_samples: int, seed: int, questions: Iterable[Question] = ()) -> WinRate:
    """The win rate and all that is needed to trust it; by category, too, where the questions are given."""
    prompts: dict[str, int] = {}
    totals, readable = array("d"), array("i")
    judged: list[int] = []
    """The orders of each prompt and turn, a bit each."""
    ends: Counter[float] = Counter()
    one_order: dict[tuple[int, int], float] = {}
    both = contradictions = decided = first_won = 0
    for game in games:
        prompt = prompts.setdefault(game.question_id, len(prompts))
        if prompt == len(judged):
            totals.append(0.0)
            readable.append(0)
            judged.append(0)
        order = 1 << (2 * game.turn + game.candidate_first)
        if judged[prompt] & order:
            raise ValueError(f"question {game.question_id} was judged twice in the same order")
        judged[prompt] |= order
        if (score := game.score) is None:
            continue
        totals[prompt] += score
        readable[prompt] += 1
        ends[score] += 1
        decided += game.verdict in _DECIDED
        first_won += game.verdict is Verdict.FIRST
        if (other := one_order.pop((prompt, game.turn), None)) is None:
            one_order[prompt, game.turn] = score
        else:
            both += 1
            contradictions += score != other
    means = array("d", (total / count for total, count in zip(totals, readable, strict=True) if count))
    interval = mean_interval(means, bootstrap_samples, seed)
    categories = {question.id: question.category for question in questions if question.category}
    grouped = (
        (categories.get(name, ""), [total / count] if count else [])
        for name, total, count in zip(prompts, totals, readable, strict=True)
    )
    asked, scored = sum(each.bit_count() for each in judged), ends.total()
    return WinRate(
        win_rate=_percent(_share(sum(means), len(means))),
        low=_percent(interval[0]) if interval else None,
        high=_percent(interval[1]) if interval else None,
        wins=ends[1.0],
        ties=ends[0.5],
        losses=ends[0.0],
        unreadable=asked - scored,
        unreadable_share=(asked - scored) / asked if asked else 0.0,
        contradiction_rate=_share(contradictions, both),
        first_position_rate=_share(first_won, decided),
        prompts=len(prompts),
        scored_prompts=len(means),
        by_category=by_category(grouped, bootstrap_samples, seed, 100) if categories else {},
    )


def answers_cut(games: Iterable[Game]) -> int:
    """How many answers the judge saw only the beginning of. Each is counted in one of the games that show it whole."""
    whole = (game for game in games if game.candidate_first)
    # Of turns, the last one shows what those before it do.
    cut = {game.question_id: int(game.details.get("answers_cut", 0)) for game in whole}
    return sum(cut.values())


_DECIDED = (Verdict.FIRST, Verdict.SECOND)


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
