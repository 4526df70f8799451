from datetime import date
from types import SimpleNamespace
from typing import Any

import pytest

from dpr_core.config.evaluation import JudgeExecutionConfig, OpenAIBatchJudgeConfig, OpenAIJudgeConfig
from dpr_core.evaluation.prices import Price, Usage, price_of, price_warnings, prices, table

OWN = JudgeExecutionConfig(dollars_per_million_read=1.0, dollars_per_million_written=2.0)


def listed(model: str, url: str | None = None, batched: bool = False) -> Price | None:
    kind = OpenAIBatchJudgeConfig if batched else OpenAIJudgeConfig
    return price_of(kind(model=model, base_url=url), JudgeExecutionConfig())


def test_the_price_is_the_one_that_was_set_or_the_listed_one() -> None:
    assert listed("gpt-4o") == Price(2.5, 10.0, cached=1.25)
    assert listed("gpt-4o-2024-05-13") != listed("gpt-4o-2024-08-06") == listed("gpt-4o")
    assert listed("gpt-4o-2099-01-01") == listed("gpt-4o")
    assert listed("gpt-4o-audio") is None
    assert listed("gpt-4o", batched=True) == Price(1.25, 5.0)
    for kind in (OpenAIJudgeConfig, OpenAIBatchJudgeConfig):
        assert price_of(kind(model="mine"), OWN) == price_of(kind(model="gpt-4o"), OWN) == Price(1.0, 2.0)


def test_a_service_tier_that_may_cost_more_has_no_listed_price() -> None:
    for tier, price in (("priority", None), ("flex", Price(2.5, 10.0, cached=1.25))):
        by = OpenAIJudgeConfig(model="gpt-4o", extra_body={"service_tier": tier})
        assert price_of(by, JudgeExecutionConfig()) == price
        assert price_of(by, OWN) == Price(1.0, 2.0)


def test_one_price_may_be_set_beside_a_listed_one() -> None:
    by = OpenAIJudgeConfig(model="gpt-4o")
    assert price_of(by, JudgeExecutionConfig(dollars_per_million_read=9.0)) == Price(9.0, 10.0)
    assert price_of(by, JudgeExecutionConfig(dollars_per_million_written=9.0)) == Price(2.5, 9.0, cached=1.25)


def test_each_vendor_has_its_own_models() -> None:
    assert listed("deepseek-chat", "https://api.deepseek.com/v1") == Price(0.28, 0.42, cached=0.028)
    assert listed("gpt-4o", "https://api.deepseek.com/v1") is None
    assert listed("deepseek-chat") is None
    # A proxy is thought to pass on what OpenAI asks for.
    assert listed("gpt-4o", "https://proxy.example/v1") == listed("gpt-4o")


def test_cached_and_thought_tokens_have_their_prices() -> None:
    price = Price(10.0, 20.0, cached=1.0, reasoning=40.0)
    assert price.of(1_000_000, 100_000) == pytest.approx(12.0)
    assert price.of_usage(Usage(1000, 100, cached=600, reasoning=50)) == pytest.approx(
        (400 * 10 + 600 * 1 + 50 * 20 + 50 * 40) / 1e6
    )
    assert price.at_most(1000, 100) == pytest.approx((1000 * 10 + 100 * 40) / 1e6)
    assert Price(10.0, 20.0).of_usage(Usage(1000, 100, 600, 50)) == Price(10.0, 20.0).of(1000, 100)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 7, "completion_tokens": 3}, Usage(7, 3)),
        (SimpleNamespace(prompt_tokens=7, completion_tokens=3), Usage(7, 3)),
        ({"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 5}}, Usage(7, 3, 5)),
        # Some count what was thought in the total alone.
        ({"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 30}, Usage(7, 23)),
        (
            {"prompt_tokens": 7, "completion_tokens": 3, "completion_tokens_details": {"reasoning_tokens": 2}},
            Usage(7, 3, 0, 2),
        ),
        ({"prompt_tokens": 7, "completion_tokens": -3}, None),
        ({"prompt_tokens": "7", "completion_tokens": 3}, None),
        ({"prompt_tokens": 0, "completion_tokens": 0}, None),
        ({"prompt_tokens": 7, "completion_tokens": 10**25}, None),
        ({"prompt_tokens": True, "completion_tokens": 3}, None),
        ({}, None),
        (None, None),
    ],
)
def test_usage_is_read_in_every_form_and_never_made_up(usage: Any, expected: Usage | None) -> None:
    assert Usage.told(usage) == expected


def test_old_prices_are_warned_of_where_they_are_used() -> None:
    taken = date.fromisoformat(table()["as_of"])
    judges = [(OpenAIJudgeConfig(model="gpt-4o"), JudgeExecutionConfig()), (OpenAIJudgeConfig(model="gpt-4.1"), OWN)]
    assert price_warnings(judges, date.fromordinal(taken.toordinal() + 183)) == []
    (warning,) = price_warnings(judges, date.fromordinal(taken.toordinal() + 184))
    assert warning.startswith(f"The prices of gpt-4o are of {taken}, more than half a year ago")
    assert price_warnings(judges[1:], date(2999, 1, 1)) == []
    # A clock before the table's day makes nothing old.
    assert price_warnings(judges, date(1970, 1, 1)) == []


def test_prices_say_where_they_are_from() -> None:
    assert prices(OWN) == "as set"
    assert prices(JudgeExecutionConfig(dollars_per_million_read=1.0)) == f"of {table()['as_of'][:7]}"
