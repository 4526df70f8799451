"""An answer that says nothing and praises itself, before a rater is trusted with any other."""

from collections.abc import Sequence
from statistics import fmean

from dpr_core.config.evaluation import JudgeExecutionConfig
from dpr_core.evaluation.canaries import CONSTANT
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.rating.rater import Rater, Turn, rate_all, turns_of

METRIC = "rate/canary_constant"


def turns(questions: Sequence[Question], count: int) -> list[Turn]:
    """The constant answer to every turn of the first questions."""
    return turns_of((question, (CONSTANT,) * len(question.turns)) for question in questions[:count])


async def try_out(rater: Rater, questions: Sequence[Question], execution: JudgeExecutionConfig) -> dict[str, float]:
    """The constant answer's mean rating, as a metric; none where no rating could be read."""
    given = await rate_all(rater, turns(questions, execution.canaries), execution, lambda done, total, note: None)
    scores = [rating.score for rating in given if rating.score is not None]
    return {METRIC: fmean(scores)} if scores else {}


def complaints(metrics: dict[str, float]) -> list[str]:
    """What the logged canary says against a rater, in a sentence; nothing where there was none."""
    constant, average = metrics.get(METRIC), metrics.get("rate/average")
    if constant is None or average is None or constant < average:
        return []
    return [
        f"The rater is fooled by an answer that says nothing: it rates it {constant:.1f}, and the real answers "
        f"{average:.1f}."
    ]
