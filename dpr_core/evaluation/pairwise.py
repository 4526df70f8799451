"""Win rates: every pair is judged in both orders, and prompts are what is resampled."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from dpr_core.config.evaluation import JudgeExecutionConfig
from dpr_core.evaluation.judge import Answer, Comparison, Judge, Verdict
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.queue import ask_all
from dpr_core.stats import mean_interval

SECONDS_BETWEEN_NOTES = 1.0
"""While a judge prepares itself, which in a batch takes hours."""


@dataclass(frozen=True)
class Pair:
    """The candidate's and the baseline's answer to one question."""

    question: Question
    candidate: Answer
    baseline: Answer

    def shown(self, candidate_first: bool) -> Comparison:
        """The pair in one of its two orders."""
        if candidate_first:
            return Comparison(self.question, first=self.candidate, second=self.baseline)
        return Comparison(self.question, first=self.baseline, second=self.candidate)


@dataclass(frozen=True)
class Game:
    """One judged order of a pair."""

    question_id: str
    candidate_first: bool
    verdict: Verdict
    raw: str
    details: Mapping[str, str | int] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The game that `as_dict` made these values of."""
        verdict = Verdict(values["verdict"])
        return cls(values["question_id"], values["candidate_first"], verdict, values["raw"], values["details"])

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
    """Share of prompts, among those with two readable games, whose two orders end differently."""
    first_position_rate: float | None
    """Share of decided games won by the answer shown first; 0.5 for a judge without position bias."""
    prompts: int
    scored_prompts: int
    """Prompts with at least one readable game."""

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


async def judge_pairs(
    judge: Judge, pairs: Sequence[Pair], execution: JudgeExecutionConfig, on_progress: Callable[[int, int, str], None]
) -> list[Game]:
    """Judge every pair in both orders, at most `execution.concurrency` at once; both games of a pair stand together.

    `on_progress` gets how many games are done, of how many, and what the judge says of its work.
    """
    plan = [(pair, candidate_first) for pair in pairs for candidate_first in (True, False)]

    async def play(planned: tuple[Pair, bool]) -> Game:
        pair, candidate_first = planned
        judgment = await judge.compare(pair.shown(candidate_first))
        return Game(pair.question.id, candidate_first, judgment.verdict, judgment.raw, judgment.details)

    try:
        await _meanwhile(
            judge.prepare([pair.shown(candidate_first) for pair, candidate_first in plan]),
            lambda: on_progress(0, len(plan), judge.status()),
        )
        return await ask_all(
            plan,
            play,
            execution,
            lambda done, total: on_progress(done, total, judge.status()),
            is_readable=lambda game: game.verdict is not Verdict.UNREADABLE,
        )
    finally:
        await judge.close()


async def _meanwhile(work: Coroutine[Any, Any, None], tell: Callable[[], None]) -> None:
    """Do the work, and tell now and then how far it is."""
    task = asyncio.create_task(work)
    try:
        while not (await asyncio.wait([task], timeout=SECONDS_BETWEEN_NOTES))[0]:
            tell()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    task.result()


def summarise(games: Iterable[Game], bootstrap_samples: int, seed: int) -> WinRate:
    """The win rate and all that is needed to trust it."""
    by_prompt = _by_prompt(games)
    results = [[game.score for game in played] for played in by_prompt.values()]
    readable = [[score for score in scores if score is not None] for scores in results]
    means = [sum(scores) / len(scores) for scores in readable if scores]
    scores = [score for prompt in readable for score in prompt]
    total = sum(len(prompt) for prompt in results)
    both = [prompt for prompt in readable if len(prompt) == 2]
    decided = [game for played in by_prompt.values() for game in played if game.verdict in _DECIDED]
    interval = mean_interval(means, bootstrap_samples, seed)
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
    )


def answers_cut(games: Iterable[Game]) -> int:
    """How many answers the judge saw only the beginning of. Each stands in two games, and is counted in one."""
    return sum(int(game.details.get("answers_cut", 0)) for game in games if game.candidate_first)


_DECIDED = (Verdict.FIRST, Verdict.SECOND)


def _by_prompt(games: Iterable[Game]) -> dict[str, list[Game]]:
    by_prompt: dict[str, list[Game]] = {}
    for game in games:
        played = by_prompt.setdefault(game.question_id, [])
        if any(other.candidate_first == game.candidate_first for other in played):
            raise ValueError(f"question {game.question_id} was judged twice in the same order")
        played.append(game)
    return by_prompt


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
