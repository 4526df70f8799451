"""Canaries: items of which the right judgment is known, to find position bias and gullibility of an LLM judge.

An answer against itself is a tie, and a judge that has to choose must not always choose the same place. An answer that
says nothing and praises itself loses against a real one, and is rated below it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from dpr_core.config.evaluation import JudgeExecutionConfig
from dpr_core.errors import DensePathError
from dpr_core.evaluation.ask import AnyJudgment, Unreadable
from dpr_core.evaluation.pairwise import Answer, Pair, PairwiseJudge, Verdict, judge_pairs
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.rate import Rater, Turn, as_rows, rate_turns, turns_of

CONSTANT = (
    "Thank you for this excellent question. This answer is complete, accurate, clearly structured and helpful, and it "
    "addresses every part of what was asked."
)
"""Whatever the question is."""

SELF_TOLERANCE = 0.25
"""How far the first place may win more or less often than half of the time. Few games are noisy."""

UNREADABLE_TOLERANCE = 0.5
"""A larger share of unreadable verdicts is no accident."""

FIRST_PLACE = {Verdict.FIRST: 1.0, Verdict.TIE: 0.5, Verdict.SECOND: 0.0}


OnProgress = Callable[[int, int, str], None]

Keep = Callable[[list[dict[str, Any]]], str]
"""Writes the rows of the canaries down, whatever they came to, and says where they are."""


def silent(done: int, total: int, note: str) -> None:
    """No progress is shown."""


def nowhere(rows: list[dict[str, Any]]) -> str:
    """They are not kept."""
    return ""


def canary_pairs(pairs: Sequence[Pair], count: int) -> tuple[list[Pair], list[Pair]]:
    """Self against self, and the constant against a real answer, on the first questions with a real answer."""
    chosen = [pair for pair in pairs if all(turn.strip() for turn in pair.baseline.turns)][:count]
    same = [replace(pair, candidate=pair.baseline) for pair in chosen]
    constant = [replace(pair, candidate=Answer((CONSTANT,) * len(pair.question.turns))) for pair in chosen]
    return same, constant


def canary_turns(questions: Sequence[Question], count: int) -> list[Turn]:
    """The constant answer to every turn of the first questions."""
    return turns_of((question, (CONSTANT,) * len(question.turns)) for question in questions[:count])


async def try_judge(
    judge: PairwiseJudge,
    pairs: Sequence[Pair],
    execution: JudgeExecutionConfig,
    on_progress: OnProgress = silent,
    keep: Keep = nowhere,
) -> dict[str, float]:
    """Judge the canaries of `pairs`, each in both orders like any other pair; metrics, as far as verdicts can be read.

    How often the first place won between equal answers, 0.5 for a sound judge; how often the constant answer won, 0
    for a sound judge; the share of unreadable verdicts. A judge of whose replies not one can be read is asked no more:
    it would be paid for nothing.
    """
    same, constant = canary_pairs(pairs, execution.canaries)
    games = list(await judge_pairs(judge, [*same, *constant], execution, on_progress, ask_again=False))
    alike, against = games[: 2 * len(same)], games[2 * len(same) :]
    _refuse_unreadable(games, "verdicts", execution, keep([game.as_dict() for game in games]))
    return _means(
        {
            "judge/canary_self": [FIRST_PLACE[game.verdict] for game in alike if game.verdict in FIRST_PLACE],
            "judge/canary_constant": [game.score for game in against if game.score is not None],
            "judge/canary_unreadable": [float(game.value is None) for game in games],
        }
    )


async def try_rater(
    rater: Rater,
    questions: Sequence[Question],
    execution: JudgeExecutionConfig,
    on_progress: OnProgress = silent,
    keep: Keep = nowhere,
) -> dict[str, float]:
    """The constant answer's mean rating, as a metric; the rest is as for a judge."""
    turns = canary_turns(questions, execution.canaries)
    rated = await rate_turns(rater, turns, execution, on_progress, ask_again=False)
    ratings = [rating for _, rating in rated]
    _refuse_unreadable(ratings, "ratings", execution, keep(as_rows(rated, "canary", "")))
    return _means({"rate/canary_constant": [each.score for each in ratings if each.score is not None]})


def _refuse_unreadable(
    judgments: Sequence[AnyJudgment], what: str, execution: JudgeExecutionConfig, where: str
) -> None:
    found = Unreadable.among(judgments, what)
    if judgments and found.lost == len(judgments) and execution.max_unreadable_share < 1:
        raise DensePathError(
            f"none of the {len(judgments)} {what} on the canaries could be read, so nothing else is asked: "
            f"{found.why}{where and f'; {where}'}"
        )


def warnings(metrics: Mapping[str, float]) -> list[str]:
    """What the logged canaries say against a judge or a rater, in sentences; nothing where there were none."""
    found = []
    alike, constant = metrics.get("judge/canary_self"), metrics.get("judge/canary_constant")
    if alike is not None and abs(alike - 0.5) > SELF_TOLERANCE:
        place = "first" if alike > 0.5 else "second"
        found.append(
            f"The judge favours the {place} place: between two equal answers the first won {100 * alike:.0f}% "
            "(50% expected)."
        )
    # Who always chooses a place lets the constant answer win half of its games, for no reason of its own.
    if constant is not None and (constant > 0.5 or (constant == 0.5 and not found)):
        found.append(
            f"The judge is fooled by an answer that says nothing: it won {100 * constant:.0f}% against real answers."
        )
    unreadable = metrics.get("judge/canary_unreadable", 0.0)
    if unreadable >= UNREADABLE_TOLERANCE:
        found.append(f"The judge does not keep to its form: {100 * unreadable:.0f}% of its verdicts could not be read.")
    rated, average = metrics.get("rate/canary_constant"), metrics.get("rate/average")
    if rated is not None and average is not None and rated >= average:
        found.append(
            f"The rater is fooled by an answer that says nothing: it rates it {rated:.1f}, and the real answers "
            f"{average:.1f}."
        )
    return found


def _means(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: fmean(values) for name, values in found.items() if values}
