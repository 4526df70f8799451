"""The judge of benchmarks whose results can be checked."""

from collections.abc import Sequence

from dpr_core.errors import UsageError
from dpr_core.evaluation.judge import Answer, Comparison, Judgment, Verdict
from dpr_core.evaluation.questions import ReadResult, is_right


class VerifiableJudge:
    """The answer that states the reference result wins; a tie where both do or neither does."""

    def __init__(self, read_result: ReadResult) -> None:
        self._read_result = read_result

    async def prepare(self, comparisons: Sequence[Comparison]) -> None:
        """There is nothing to prepare."""

    async def compare(self, comparison: Comparison) -> Judgment:
        first, second = self._right(comparison, comparison.first), self._right(comparison, comparison.second)
        verdict = Verdict.TIE if first == second else Verdict.FIRST if first else Verdict.SECOND
        words = {True: "right", False: "wrong"}
        return Judgment(verdict, f"first {words[first]}, second {words[second]}")

    def status(self) -> str:
        return ""

    async def close(self) -> None:
        """There is nothing to let go of."""

    def _right(self, comparison: Comparison, answer: Answer) -> bool:
        right = is_right(comparison.question, answer.turns[-1], self._read_result)
        if right is None:
            raise UsageError(
                f"question {comparison.question.id} has no reference, which the verifiable judge needs; "
                "give every question of the benchmark a `reference`, or choose another judge"
            )
        return right
