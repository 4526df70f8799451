"""What rating would cost, before anybody is asked."""

from collections.abc import Sequence

from dpr_core.config.evaluation import OpenAIRaterConfig, RateConfig
from dpr_core.evaluation.budget import tokens_in
from dpr_core.evaluation.cost import Cost, cost_of
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.rating import canary
from dpr_core.evaluation.rating.chat import within_limit
from dpr_core.evaluation.rating.rater import Prompts, turns_of


def rating_cost(config: RateConfig, prompts: Prompts, answered: Sequence[tuple[Question, tuple[str, ...]]]) -> Cost:
    """Of every rating of these answers and of the canary, if none of them is kept already."""
    if not isinstance(config.by, OpenAIRaterConfig):
        return Cost()
    turns = turns_of(answered, config.judgings)
    turns += canary.turns([question for question, _ in answered], config.execution.canaries)
    shown = (within_limit(turn, config.by.max_answer_characters)[0] for turn in turns)
    return cost_of((tokens_in(prompts.request(turn).messages) for turn in shown), config.by, config.execution)
