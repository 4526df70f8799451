"""A judge that follows a rule: the twin of a real one, for tests and dry runs."""

from collections.abc import Callable, Sequence

from dpr_core.evaluation.judge import Answer, Comparison, Judgment, Verdict


def _size(answer: Answer) -> int:
    return sum(len(turn) for turn in answer.turns)


def _longer(comparison: Comparison) -> Verdict:
    first, second = _size(comparison.first), _size(comparison.second)
    return Verdict.TIE if first == second else Verdict.FIRST if first > second else Verdict.SECOND


def _shorter(comparison: Comparison) -> Verdict:
    return _longer(Comparison(comparison.question, first=comparison.second, second=comparison.first))


RULES: dict[str, Callable[[Comparison], Verdict]] = {
    "longer": _longer,
    "shorter": _shorter,
    "first": lambda _: Verdict.FIRST,
    "tie": lambda _: Verdict.TIE,
    "unreadable": lambda _: Verdict.UNREADABLE,
}


class ScriptedJudge:
    """Applies one of RULES; lengths are counted in characters."""

    def __init__(self, rule: str) -> None:
        self._rule = rule
        self._apply = RULES[rule]

    async def prepare(self, comparisons: Sequence[Comparison]) -> None:
        """There is nothing to prepare."""

    async def compare(self, comparison: Comparison) -> Judgment:
        return Judgment(self._apply(comparison), f"rule: {self._rule}")

    def status(self) -> str:
        return ""

    async def close(self) -> None:
        """There is nothing to let go of."""
