import asyncio
from typing import Any

import pytest

from dpr_core.config.evaluation import (
    JudgeConfig,
    JudgeExecutionConfig,
    OpenAIBatchJudgeConfig,
    OpenAIJudgeConfig,
    ScriptedJudgeConfig,
)
from dpr_core.evaluation.budget import (
    OVERHEAD_TOKENS,
    REPLY_TOKENS,
    BudgetReachedError,
    Cost,
    Meter,
    cost_of,
    most_tokens_in,
    tokens_in,
)
from dpr_core.evaluation.endpoint import RateLimiter
from dpr_core.evaluation.judge import judging_cost
from dpr_core.evaluation.pairwise import Answer, Pair
from dpr_core.evaluation.prices import Price, Usage
from dpr_core.evaluation.prompts import pairwise_messages
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.spending import Spending


def charge(meter: Meter, read: int, written: int) -> int:
    return asyncio.run(meter.charge(read, written))


def test_a_charge_counts_at_its_most_until_it_is_answered_or_withdrawn() -> None:
    meter = Meter(Price(1e6, 1e6), cap=10.0)
    first, second = charge(meter, 2, 3), charge(meter, 2, 3)
    meter.withdraw(second)
    meter.answer(first, Usage(2, 1))
    assert meter.spent == 3.0
    lost = charge(meter, 3, 4)
    meter.lose(lost)
    assert meter.spent == 10.0
    with pytest.raises(BudgetReachedError, match=r"\$3\.00 of .*budget_dollars=10 is spent and \$7\.00 set aside"):
        charge(meter, 0, 1)


def test_a_batch_that_is_asked_for_again_is_known_by_what_was_set_aside() -> None:
    meter = Meter(Price(1e6, 1e6), cap=10.0)
    sent = asyncio.run(meter.charge(4, 4, batch="file"))
    assert asyncio.run(meter.charge(0, 0, batch="file")) == sent
    meter.answer(sent, None)
    assert meter.spent == 8.0


def test_an_answer_is_fetched_whatever_was_spent() -> None:
    meter = Meter(Price(1e6, 1e6), cap=10.0)
    meter.answer(charge(meter, 5, 5), Usage(50, 50))
    asyncio.run(meter.charge(0, 0, batch="of an earlier version"))


def test_without_a_price_there_is_nothing_to_tell_of_money() -> None:
    meter = Meter(None, None)
    meter.answer(charge(meter, 10**9, 10**9), Usage(5, 6))
    assert (meter.spent, meter.read, meter.written, meter.requests) == (None, 5, 6, 1)


def test_an_endpoint_that_charges_more_than_the_most_is_believed_from_then_on() -> None:
    meter = Meter(Price(1e6, 1e6), cap=100.0)
    meter.answer(charge(meter, 5, 5), Usage(5, 25))
    meter.lose(charge(meter, 5, 5))
    assert meter.spent == 60.0


@pytest.mark.parametrize("text", ["7" * 100, "qzx" * 100, "\u6587" * 100, "\U0001f600" * 100, "\udc00" * 100])
def test_no_text_has_more_tokens_than_are_set_aside(text: str) -> None:
    assert most_tokens_in([{"content": text}]) >= len(text.encode("utf-8", "replace"))
    assert most_tokens_in([{"content": text}], {"a": text}) > most_tokens_in([{"content": text}])


def test_tokens_are_rather_over_than_underestimated() -> None:
    # 400 words of English have some 530 tokens.
    added = tokens_in([{"content": "the small house " * 133}]) - tokens_in([{"content": ""}])
    assert 530 <= added <= 700


@pytest.mark.parametrize("text", ["\u6587\u5b57" * 100, "\U0001f600" * 100, "{}[];" * 100, "\udc00" * 100])
def test_of_what_is_not_words_every_byte_may_be_a_token(text: str) -> None:
    tokens = tokens_in([{"content": text}])
    assert tokens == len(text.encode("utf-8", "replace")) + OVERHEAD_TOKENS


def test_a_request_waits_for_own_ones_under_way_and_for_nobody_else() -> None:
    async def run() -> None:
        ledger = Spending(None)
        meter, other = (Meter(Price(1e6, 1e6), 10.0, ledger) for _ in range(2))
        first = await meter.charge(2, 3)
        waiting = asyncio.create_task(meter.charge(3, 3))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        with pytest.raises(BudgetReachedError, match=r"\$5\.00 set aside"):
            await other.charge(3, 3)
        meter.answer(first, Usage(1, 1))
        await asyncio.wait_for(waiting, 5)
        # Even if what is under way came to nothing, 2 are spent.
        with pytest.raises(BudgetReachedError, match=r"at most \$9\.00"):
            await meter.charge(4, 5)

    asyncio.run(run())


def test_pace_spreads_units_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "time", lambda: 100.0)
        monkeypatch.setattr(asyncio, "sleep", sleep)
        pace = RateLimiter(per_minute=60)
        for units in (1, 2, 1, 1):
            await pace.wait(units)
        await RateLimiter(None).wait(10**6)

    asyncio.run(run())
    assert slept == [1.0, 3.0, 4.0]


PRICED: dict[str, Any] = {"dollars_per_million_read": 1.0, "dollars_per_million_written": 10.0}


def pair(text: str, number: int = 0) -> Pair:
    return Pair(Question(str(number), ("Why?",)), Answer.of(text), Answer.of("because"))


def config(**execution: Any) -> JudgeConfig:
    return JudgeConfig(
        by=OpenAIJudgeConfig(max_tokens=400), execution=JudgeExecutionConfig(**{**PRICED, "canaries": 0, **execution})
    )


def test_requests_tokens_and_dollars() -> None:
    cost = cost_of([1000, 3000], OpenAIJudgeConfig(max_tokens=400), JudgeExecutionConfig(**PRICED))
    assert cost == Cost(2, 4000, 4000, 2 * REPLY_TOKENS, 800, (4000 + 20 * REPLY_TOKENS) / 1e6, 0.012)
    assert cost_of([1000], OpenAIJudgeConfig(max_tokens=16), JudgeExecutionConfig()).tokens_written_about == 16
    thinks = OpenAIJudgeConfig(max_tokens=8192, reasoning_effort="low")
    assert cost_of([1000, 1], thinks, JudgeExecutionConfig()).tokens_written_about == 8192


def test_a_batch_costs_half_of_the_listed_price_and_as_much_as_a_price_that_was_set() -> None:
    alone, batched = OpenAIJudgeConfig(model="gpt-4o"), OpenAIBatchJudgeConfig(model="gpt-4o")
    listed = [cost_of([10**6], by, JudgeExecutionConfig()).dollars_at_most for by in (alone, batched)]
    assert listed == [pytest.approx(2.5 + 10 * 512e-6), pytest.approx((2.5 + 10 * 512e-6) / 2)]
    own = [cost_of([10**6], by, JudgeExecutionConfig(**PRICED)).dollars_at_most for by in (alone, batched)]
    assert own == [pytest.approx(1 + 10 * 512e-6)] * 2


def test_a_model_without_a_price_makes_every_sum_unknown() -> None:
    unknown = cost_of([1], OpenAIJudgeConfig(model="mine"), JudgeExecutionConfig())
    assert (unknown.dollars_about, unknown.dollars_at_most) == (None, None)
    both = Cost(1, 2, 3, 4, 5, 6.0, 7.0) + unknown
    assert (both.requests, both.dollars_about, both.dollars_at_most) == (2, None, None)


def test_costs_add_up_and_take_the_bounds_of_another_estimate() -> None:
    likely, longest = Cost(1, 10, 10, 5, 20, 0.5, 1.0), Cost(1, 30, 30, 5, 40, 1.5, 2.004)
    assert likely + longest == Cost(2, 40, 40, 10, 60, 2.0, 3.004)
    bounded = likely.at_most(longest)
    assert bounded == Cost(1, 10, 30, 5, 40, 0.5, 2.004)
    assert bounded.as_dict()["dollars_at_most"] == 2.0


def test_both_orders_and_the_canaries_are_counted() -> None:
    pairs = [pair("x" * 700, i) for i in range(3)]
    plain = judging_cost(config(), pairs)
    orders = [pairs[0].shown(first) for first in (True, False)]
    assert plain.requests == 6
    assert plain.tokens_read_about == 3 * sum(tokens_in(pairwise_messages(each)) for each in orders)
    assert plain.tokens_read_about > 6 * (700 / 3.5 + OVERHEAD_TOKENS)
    # An answer against itself and the constant answer, on two questions, in both orders.
    assert judging_cost(config(canaries=2), pairs).requests == 6 + 8
    assert judging_cost(JudgeConfig(by=ScriptedJudgeConfig()), pairs) == Cost()


def test_no_more_of_an_answer_is_counted_than_is_sent() -> None:
    def read(characters: int) -> int:
        return judging_cost(config(), [pair("x" * characters)]).tokens_read_about

    assert read(10**5) == read(10**6) > read(10**4)
