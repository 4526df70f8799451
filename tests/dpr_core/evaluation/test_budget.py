import asyncio

import pytest

from dpr_core.evaluation.budget import OVERHEAD_TOKENS, BudgetReached, Meter, Price, price_of, tokens_in
from dpr_core.evaluation.endpoint import RateLimiter


def test_prices() -> None:
    assert price_of("gpt-4o", None, None) == Price(2.5, 10.0)
    assert price_of("gpt-4o-2024-08-06", None, None) == Price(2.5, 10.0)
    assert price_of("gpt-4o-mini-2024-07-18", None, None) == Price(0.15, 0.6)
    assert price_of("gpt-4o-audio", None, None) is None
    assert price_of("mine", 1.0, 2.0) == Price(1.0, 2.0)
    assert price_of("gpt-4o", None, None, batched=True) == Price(1.25, 5.0)
    assert price_of("gpt-4o", 1.0, 2.0, batched=True) == Price(1.0, 2.0)
    assert Price(2.5, 10.0).of(1_000_000, 100_000) == pytest.approx(3.5)


def test_a_reservation_counts_until_it_is_settled_or_released() -> None:
    meter = Meter(Price(1e6, 1e6), cap=10.0)
    first = meter.reserve(2, 3)
    second = meter.reserve(2, 3)
    with pytest.raises(BudgetReached, match=r"\$0\.00 of .*budget_dollars=10"):
        meter.reserve(1, 0)
    meter.release(second)
    meter.settle(first, read=2, written=1)
    assert meter.spent == 3.0
    meter.reserve(3, 4)
    with pytest.raises(BudgetReached, match=r"\$3\.00"):
        meter.reserve(0, 1)


def test_without_a_price_there_is_nothing_to_tell_of_money() -> None:
    meter = Meter(None, None)
    meter.settle(meter.reserve(10**9, 10**9), 5, 6)
    assert (meter.spent, meter.read, meter.written, meter.requests) == (None, 5, 6, 1)


def test_tokens_are_rather_over_than_underestimated() -> None:
    # 400 words of English have some 530 tokens.
    added = tokens_in([{"content": "the small house " * 133}]) - tokens_in([{"content": ""}])
    assert 530 <= added <= 700


@pytest.mark.parametrize("text", ["\u6587\u5b57" * 100, "\U0001f600" * 100, "{}[];" * 100, "\udc00" * 100])
def test_of_what_is_not_words_every_byte_may_be_a_token(text: str) -> None:
    tokens = tokens_in([{"content": text}])
    assert tokens == len(text.encode("utf-8", "replace")) + OVERHEAD_TOKENS


def test_a_request_waits_for_those_under_way_rather_than_give_up() -> None:
    meter = Meter(Price(1e6, 1e6), cap=10.0)
    assert not meter.is_promised(2, 3)
    first = meter.reserve(2, 3)
    assert not meter.is_promised(2, 3)
    second = meter.reserve(2, 3)
    assert meter.is_promised(2, 3)
    meter.settle(first, read=1, written=1)
    assert meter.is_promised(2, 3)
    meter.settle(second, read=1, written=1)
    assert not meter.is_promised(2, 3)
    meter.settle(meter.reserve(2, 3), read=2, written=3)
    # 9 are spent: nothing that others settle for can make room.
    assert not meter.is_promised(2, 3)
    assert not Meter(None, None).is_promised(10**9, 0)


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
