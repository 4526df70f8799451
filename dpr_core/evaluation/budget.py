"""The budget of LLM judging: a cost estimate before, a meter during, and a cap that is never passed."""

import asyncio
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from dpr_core.config.evaluation import ChatCompletionsConfig, JudgeExecutionConfig
from dpr_core.errors import DensePathError
from dpr_core.evaluation.prices import Price, Usage, price_of
from dpr_core.evaluation.spending import BILLION, Spending

CHARACTERS_PER_TOKEN = 3.5
"""Rather too many tokens than too few: English words have about four characters a token."""

WORDS = re.compile(r"[A-Za-z0-9 ]+")
"""Of anything else, such as punctuation and other scripts, a token may be as short as a byte."""

OVERHEAD_TOKENS = 16

REPLY_TOKENS = 150
"""About what a judge writes: five sentences and a verdict."""

THINKING_SHARE = 0.5
"""The assumed length of a reply that a reasoning model thinks before, as a share of `max_tokens`."""

SECONDS_BETWEEN_LOOKS = 0.05


class BudgetReachedError(DensePathError):
    """The next request could cost more than what is left."""


def tokens_in(messages: Iterable[Mapping[str, str]]) -> int:
    """About how many tokens a request has."""
    texts = [message["content"] for message in messages]
    words = sum(len(word) for text in texts for word in WORDS.findall(text))
    other = sum(len(text.encode("utf-8", "replace")) for text in texts) - words
    return int(words / CHARACTERS_PER_TOKEN) + other + OVERHEAD_TOKENS


def most_tokens_in(messages: Iterable[Mapping[str, str]], schema: Mapping[str, Any] | None = None) -> int:
    """No request of these has more: no token is shorter than a byte."""
    texts = [message["content"] for message in messages]
    if schema is not None:
        texts.append(json.dumps(schema))
    return sum(len(text.encode("utf-8", "replace")) for text in texts) + OVERHEAD_TOKENS


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
    about, most = (len(asked) * each for each in (reply_tokens(by), by.max_tokens))
    price = price_of(by, execution)
    dollars = (None, None) if price is None else (price.of(read, about), price.of(read, most))
    return Cost(len(asked), read, read, about, most, *dollars)


def reply_tokens(by: ChatCompletionsConfig) -> int:
    """About how long a reply is, with what is thought before it."""
    thinks = by.reasoning_effort not in (None, "none")
    return max(min(REPLY_TOKENS, by.max_tokens), int(THINKING_SHARE * by.max_tokens) if thinks else 0)


def _sum(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


class Meter:
    """Charges requests to an account of the ledger, and counts what this process has spent.

    A request is charged the most that it can cost. The cap is of all that the account ever spent or set aside, by
    whomever.
    """

    def __init__(
        self,
        price: Price | None,
        cap: float | None,
        ledger: Spending | None = None,
        account: str = "judging",
        model: str = "",
    ) -> None:
        self.price = price
        self.requests = self.read = self.written = 0
        self._cap = None if cap is None or price is None else int(cap * BILLION)
        self._ledger = ledger or Spending(None)
        self._account = account
        self._model = model
        self._spent = 0
        self._under_way: dict[int, int] = {}
        """Own charges that are not answered yet."""
        self._excess = 1.0
        """How many times what was thought to be the most an endpoint has charged: some think beyond `max_tokens`."""

    @property
    def spent(self) -> float | None:
        """By what this process was answered, and by what it lost."""
        return None if self.price is None else self._spent / BILLION

    async def charge(
        self, read: int, written: int, what: str = "the next request", requests: int = 1, batch: str | None = None
    ) -> int:
        """Set the largest cost of a request, or of a whole batch, aside: the number of the charge.

        Where only own requests under way are in the way, they are waited for; else BudgetReachedError.
        """
        most = self._most(read, written)
        while True:
            charge = self._ledger.charge(self._account, self._model, most, self._cap, requests, batch)
            if charge is not None:
                self._under_way.setdefault(charge, most or 0)
                return charge
            own = 0 if batch else sum(self._under_way.values())
            self._check(most, own, what)
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)

    def check_room(self, read: int, written: int, what: str) -> None:
        """Refuse what could pass the cap, before anything is prepared for it. Nothing is set aside."""
        self._check(self._most(read, written), 0, what)

    def answer(self, charge: int, used: Usage | None, requests: int = 1) -> None:
        """What the endpoint says was used in place of what was set aside; without a word, that stays."""
        most = self._under_way.pop(charge, 0)
        self.requests += requests
        if used is None:
            self._spent += most
            return
        cost = None if self.price is None else _billionths(self.price.of_usage(used))
        if most and cost is not None:
            self._excess = max(self._excess, self._excess * cost / most)
        self._ledger.answer(charge, cost, used.read, used.written, requests)
        self.read += used.read
        self.written += used.written
        self._spent += cost or 0

    def lose(self, charge: int) -> None:
        """Sent, and nothing came back: it may have been served, so that what was set aside is spent."""
        self._spent += self._under_way.pop(charge, 0)

    def withdraw(self, charge: int) -> None:
        """A request that came to nothing costs nothing."""
        self._under_way.pop(charge, None)
        self._ledger.withdraw(charge)

    def flush(self) -> None:
        self._ledger.flush()

    def _most(self, read: int, written: int) -> int | None:
        return None if self.price is None else _billionths(self._excess * self.price.at_most(read, written))

    def _check(self, most: int | None, own: int, what: str) -> None:
        """Raise where this much passes the cap, even if own requests under way were to cost nothing."""
        if most is None or self._cap is None or self._ledger.total(self._account) - own + most <= self._cap:
            return
        self._ledger.flush()
        of_account = [each for each in self._ledger.by_model() if each.account == self._account]
        spent, aside = sum(each.dollars for each in of_account), sum(each.set_aside for each in of_account)
        held = f" and ${aside:.2f} set aside for requests under way or lost" if aside else ""
        raise BudgetReachedError(
            f"${spent:.2f} of judge.execution.budget_dollars={self._cap / BILLION:g} is spent{held}, and {what}, at "
            f"most ${most / BILLION:.2f}, could pass it; raise the budget and run the same command again: verdicts "
            f"that were paid for are kept. The budget is of all that {self._account!r} ever spent in this DPR_HOME "
            "(`dpr costs`); judge.execution.budget_account names another"
        )


def _billionths(dollars: float) -> int:
    """Rounded up, so that no sum comes out below what is owed."""
    return math.ceil(dollars * BILLION)
