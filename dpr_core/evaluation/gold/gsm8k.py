"""GSM8K: the share of stated equations that hold, and the exact result; rows as published (`<<a*b=c>>`, `#### n`)."""

from dpr_core.config.gold import GSM8KConfig
from dpr_core.evaluation.gold import arithmetic, rows, word_problems
from dpr_core.evaluation.gold.measures import Gold
from dpr_core.evaluation.gold.rows import GoldRow
from dpr_core.evaluation.questions import Question

GOLD = Gold((word_problems.EQUATIONS, word_problems.RIGHT, word_problems.STATED), word_problems.of_answer)


def load(config: GSM8KConfig) -> list[Question]:
    """A question a row, the number after `####` as reference."""
    return [row.question(word_problems.result_of(row, _final)) for row in rows.load(config)]


def _final(row: GoldRow) -> str | None:
    return arithmetic.read_result(row.answer) or row.answer or arithmetic.read_result(row.response)
