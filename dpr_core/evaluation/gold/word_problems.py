"""Word problems (MAWPS, ASDiv, SVAMP): the exact result, and the share of stated equations that hold."""

from collections.abc import Callable

from dpr_core.config.gold import WordProblemsConfig
from dpr_core.errors import UsageError
from dpr_core.evaluation.gold import arithmetic, rows
from dpr_core.evaluation.gold.measures import Gold, Measure, Values
from dpr_core.evaluation.gold.rows import GoldRow
from dpr_core.evaluation.questions import Question

RIGHT = Measure("right", "right %")
EQUATIONS = Measure("equation_right", "right equations %", weight="equations")
STATED = Measure("stated", "states a result %")


def load(config: WordProblemsConfig) -> list[Question]:
    """A question a row, its result as reference."""
    return [row.question(result_of(row, _of_answer)) for row in rows.load(config)]


def _of_answer(row: GoldRow) -> str | None:
    return row.answer or arithmetic.read_result(row.response)


def result_of(row: GoldRow, read: Callable[[GoldRow], str | None]) -> str:
    """The number that is the right result of a row."""
    result = read(row)
    if result is None or arithmetic.value(result) is None:
        raise UsageError(
            f"{row.where} (id {row.id}) has no number as its result{f' but {result[:40]!r}' if result else ''}; "
            "give it one in the column that columns.answer names"
        )
    return result


def is_right(question: Question, text: str) -> bool | None:
    """Whether the number that an answer states is the reference; None for a question without one."""
    if question.reference is None:
        return None
    return arithmetic.same_number(arithmetic.read_result(text) or "", question.reference)


def of_answer(question: Question, text: str) -> Values:
    held = arithmetic.equations(text)
    measured = {"right": float(bool(is_right(question, text))), "stated": float(_states(text)), "equations": len(held)}
    return measured | ({"equation_right": sum(held) / len(held)} if held else {})


def _states(text: str) -> bool:
    return arithmetic.read_result(text) is not None


GOLD = Gold((RIGHT, EQUATIONS, STATED), of_answer)
