"""What judging would cost, before anybody is asked."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from dpr_core.config.evaluation import ChatCompletionsConfig, JudgeConfig, JudgeExecutionConfig, OpenAIBatchJudgeConfig
from dpr_core.evaluation.budget import PRICES_AS_OF, price_of, tokens_of
from dpr_core.evaluation.canaries import pairs_of
from dpr_core.evaluation.openai import within_limit
from dpr_core.evaluation.pairwise import Pair

REPLY_TOKENS = 150
"""About what a judge writes: five sentences and a verdict."""


@dataclass(frozen=True)
class Cost:
    """Requests, their tokens, and dollars; None where no price is known. Every reply is readable at once."""

    requests: int = 0
    tokens_read_about: int = 0
    tokens_read_at_most: int = 0
    tokens_written_about: int = 0
    tokens_written_at_most: int = 0
    dollars_about: float | None = 0.0
    dollars_at_most: float | None = 0.0

    def __add__(self, other: "Cost") -> Self:
        names = [each.name for each in fields(self)]
        sums: dict[str, Any] = {name: _sum(getattr(self, name), getattr(other, name)) for name in names}
        return replace(self, **sums)

    def at_most(self, other: "Cost") -> Self:
        """The same requests, with the bounds of another estimate."""
        return replace(
            self,
            tokens_read_at_most=other.tokens_read_at_most,
            tokens_written_at_most=other.tokens_written_at_most,
            dollars_at_most=other.dollars_at_most,
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON values, dollars in cents."""
        return {name: round(value, 2) if isinstance(value, float) else value for name, value in asdict(self).items()}


def judging_cost(config: JudgeConfig, pairs: Sequence[Pair]) -> Cost:
    """Of both orders of every pair and of the canaries, if none of the verdicts is kept already."""
    if not isinstance(config.by, ChatCompletionsConfig):
        return Cost()
    asked = [*pairs, *(each for kind in pairs_of(pairs, config.execution.canaries) for each in kind)]
    limit = config.by.max_answer_characters
    read = (tokens_of(within_limit(pair.shown(first), limit)[0]) for pair in asked for first in (True, False))
    return cost_of(read, config.by, config.execution)


def cost_of(tokens: Iterable[int], by: ChatCompletionsConfig, execution: JudgeExecutionConfig) -> Cost:
    """Of requests with so many tokens."""
    asked = list(tokens)
    read = sum(asked)
    about, most = (len(asked) * each for each in (min(REPLY_TOKENS, by.max_tokens), by.max_tokens))
    own = (execution.dollars_per_million_read, execution.dollars_per_million_written)
    price = price_of(by.model, *own, batched=isinstance(by, OpenAIBatchJudgeConfig))
    dollars = (None, None) if price is None else (price.of(read, about), price.of(read, most))
    return Cost(len(asked), read, read, about, most, *dollars)


def prices(execution: JudgeExecutionConfig) -> str:
    """Where the prices are from."""
    own = (execution.dollars_per_million_read, execution.dollars_per_million_written)
    return f"of {PRICES_AS_OF}" if None in own else "as set"


def _sum(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b
