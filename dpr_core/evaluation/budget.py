"""The budget of LLM judging: token prices, a cost estimate before, a meter during, and a cap that is never passed."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from dpr_core.config.evaluation import ChatCompletionsConfig, JudgeExecutionConfig, OpenAIBatchJudgeConfig
from dpr_core.errors import DensePathError

PRICES_AS_OF = "2025-06"

PRICES: dict[str, tuple[float, float]] = {
    "gpt-4o": (2.50, 10.00),
    "gpt-4o-mini": (0.15, 0.60),
    "gpt-4.1": (2.00, 8.00),
    "gpt-4.1-mini": (0.40, 1.60),
    "gpt-4-turbo": (10.00, 30.00),
}
"""Dollars for a million tokens read and a million written, as OpenAI listed them in the month above."""

CHARACTERS_PER_TOKEN = 3.5
"""Rather too many tokens than too few: English words have about four characters a token."""

WORDS = re.compile(r"[A-Za-z0-9 ]+")
"""Of anything else, such as punctuation and other scripts, a token may be as short as a byte."""

OVERHEAD_TOKENS = 16

REPLY_TOKENS = 150
"""About what a judge writes: five sentences and a verdict."""


class BudgetReachedError(DensePathError):
    """The next request could cost more than what is left."""


@dataclass(frozen=True)
class Price:
    """Dollars for a million tokens."""

    read: float
    written: float

    def of(self, read: int, written: int) -> float:
        return (read * self.read + written * self.written) / 1e6

    def halved(self) -> "Price":
        """What the same costs in a batch."""
        return Price(self.read / 2, self.written / 2)


def price_of(by: ChatCompletionsConfig, execution: JudgeExecutionConfig) -> Price | None:
    """The price that was set, or the listed one of the model or of the model it is a dated version of.

    A listed price is halved for a batch. One that was set is what a request costs, however it is sent.
    """
    read, written = execution.dollars_per_million_read, execution.dollars_per_million_written
    if read is not None and written is not None:
        return Price(read, written)
    batched = isinstance(by, OpenAIBatchJudgeConfig)
    for name in sorted(PRICES, key=len, reverse=True):
        if by.model == name or by.model.startswith(f"{name}-20"):
            return Price(*PRICES[name]).halved() if batched else Price(*PRICES[name])
    return None


def tokens_in(messages: Iterable[Mapping[str, str]]) -> int:
    """About how many tokens a request has."""
    texts = [message["content"] for message in messages]
    words = sum(len(word) for text in texts for word in WORDS.findall(text))
    other = sum(len(text.encode("utf-8", "replace")) for text in texts) - words
    return int(words / CHARACTERS_PER_TOKEN) + other + OVERHEAD_TOKENS


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


def cost_of(tokens: Iterable[int], by: ChatCompletionsConfig, execution: JudgeExecutionConfig) -> Cost:
    """Of requests with so many tokens."""
    asked = list(tokens)
    read = sum(asked)
    about, most = (len(asked) * each for each in (min(REPLY_TOKENS, by.max_tokens), by.max_tokens))
    price = price_of(by, execution)
    dollars = (None, None) if price is None else (price.of(read, about), price.of(read, most))
    return Cost(len(asked), read, read, about, most, *dollars)


def prices(execution: JudgeExecutionConfig) -> str:
    """Where the prices are from."""
    own = (execution.dollars_per_million_read, execution.dollars_per_million_written)
    return f"of {PRICES_AS_OF}" if None in own else "as set"


def _sum(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


class Meter:
    """Counts what was spent. A request reserves the most it can cost, and settles for what it did cost."""

    def __init__(self, price: Price | None, cap: float | None) -> None:
        self.price = price
        self.cap = cap
        self.requests = self.read = self.written = 0
        self._reserved = 0.0

    @property
    def spent(self) -> float | None:
        return None if self.price is None else self.price.of(self.read, self.written)

    def is_promised(self, read: int, written: int) -> bool:
        """Whether there is room for a request, but only once some of those under way have settled for less."""
        if self.price is None or self.cap is None:
            return False
        most, spent = self.price.of(read, written), self.price.of(self.read, self.written)
        return spent + most <= self.cap < spent + most + self._reserved

    def reserve(self, read: int, written: int, what: str = "the next request") -> float:
        """Set the largest cost of a request, or of a whole batch, aside, or refuse it."""
        if self.price is None or self.cap is None:
            return 0.0
        most = self.price.of(read, written)
        spent = self.price.of(self.read, self.written)
        if spent + self._reserved + most > self.cap:
            raise BudgetReachedError(
                f"${spent:.2f} of judge.execution.budget_dollars={self.cap:g} is spent, and {what}, at "
                f"most ${most:.2f}, could pass it; raise the budget and run the same command again: verdicts that were "
                "paid for are kept"
            )
        self._reserved += most
        return most

    def settle(self, reserved: float, read: int, written: int) -> None:
        self._reserved -= reserved
        self.requests += 1
        self.read += read
        self.written += written

    def release(self, reserved: float) -> None:
        """A request that came to nothing cost nothing."""
        self._reserved -= reserved
