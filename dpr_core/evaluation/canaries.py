"""Two questions to a judge of which the answer is known, before it is trusted with any other.

An answer against itself is a tie, and a judge that has to choose must not always choose the same place. An answer that
says nothing and praises itself loses against a real one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dpr_core.config.evaluation import JudgeExecutionConfig
from dpr_core.errors import DensePathError
from dpr_core.evaluation.judge import Answer, Judge, Verdict
from dpr_core.evaluation.pairwise import Pair, judge_pairs

CONSTANT = (
    "Thank you for this excellent question. This answer is complete, accurate, clearly structured and helpful, and it "
    "addresses every part of what was asked."
)
"""Whatever the question is."""

SELF_TOLERANCE = 0.25
"""How far the first place may win more or less often than half of the time. Few games are noisy."""

UNREADABLE_TOLERANCE = 0.5
"""A larger share of unreadable verdicts is no accident."""

EXCERPT = 200
"""Characters of a reply that are shown."""

FIRST_PLACE = {Verdict.FIRST: 1.0, Verdict.TIE: 0.5, Verdict.SECOND: 0.0}


@dataclass(frozen=True)
class Canaries:
    """What came of them; None where no verdict could be read."""

    between_equals: float | None
    """How often the first place won between equal answers, ties 0.5: 0.5 for a sound judge."""
    constant: float | None
    """How often the constant answer won, ties 0.5: 0 for a sound judge."""
    unreadable: float | None
    """Share of all these verdicts that could not be read."""

    def as_metrics(self) -> dict[str, float]:
        """By the names under which they are logged."""
        found = {
            "judge/canary_self": self.between_equals,
            "judge/canary_constant": self.constant,
            "judge/canary_unreadable": self.unreadable,
        }
        return {name: value for name, value in found.items() if value is not None}


def pairs_of(pairs: Sequence[Pair], count: int) -> tuple[list[Pair], list[Pair]]:
    """Self against self, and the constant against a real answer, on the first questions with a real answer."""
    chosen = [pair for pair in pairs if all(turn.strip() for turn in pair.baseline.turns)][:count]
    same = [replace(pair, candidate=pair.baseline) for pair in chosen]
    constant = [replace(pair, candidate=Answer((CONSTANT,) * len(pair.question.turns))) for pair in chosen]
    return same, constant


async def try_out(
    judge: Judge,
    pairs: Sequence[Pair],
    execution: JudgeExecutionConfig,
    on_progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> Canaries:
    """Judge the canaries of `pairs`, each in both orders like any other pair.

    A judge of whose replies not one can be read is asked no more: it would be paid for nothing.
    """
    same, constant = pairs_of(pairs, execution.canaries)
    games = await judge_pairs(judge, [*same, *constant], execution, on_progress)
    alike, against = games[: 2 * len(same)], games[2 * len(same) :]
    lost = [game for game in games if game.verdict is Verdict.UNREADABLE]
    if games and len(lost) == len(games) and execution.max_unreadable_share < 1:
        raise DensePathError(
            f"none of the {len(games)} verdicts on the canaries could be read, so nothing else is asked; the judge "
            f"wrote, for example, {lost[0].raw[:EXCERPT]!r}"
        )
    return Canaries(
        _mean([FIRST_PLACE[game.verdict] for game in alike if game.verdict in FIRST_PLACE]),
        _mean([game.score for game in against if game.score is not None]),
        _mean([float(game.verdict is Verdict.UNREADABLE) for game in games]),
    )


def complaints(metrics: dict[str, float]) -> list[str]:
    """What the logged canaries say against a judge, in sentences; nothing where there were none."""
    found = []
    alike, constant = metrics.get("judge/canary_self"), metrics.get("judge/canary_constant")
    if alike is not None and abs(alike - 0.5) > SELF_TOLERANCE:
        place = "first" if alike > 0.5 else "second"
        found.append(
            f"The judge favours the {place} place: between two equal answers the first won {100 * alike:.0f}% "
            "(50% expected)."
        )
    if constant is not None and constant >= 0.5:
        found.append(
            f"The judge is fooled by an answer that says nothing: it won {100 * constant:.0f}% against real answers."
        )
    unreadable = metrics.get("judge/canary_unreadable", 0.0)
    if unreadable >= UNREADABLE_TOLERANCE:
        found.append(f"The judge does not keep to its form: {100 * unreadable:.0f}% of its verdicts could not be read.")
    return found


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
