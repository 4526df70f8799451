import asyncio
from collections import Counter

import pytest

from dpr_core.config.evaluation import JudgeExecutionConfig
from dpr_core.errors import DensePathError
from dpr_core.evaluation import ask as core
from dpr_core.evaluation.endpoint import Unavailable


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "MOST_SECONDS_BETWEEN_ROUNDS", 0.001)


def asked(absent: dict[int, int], refused: int | None = None, **execution: int) -> tuple[list[int], Counter[int], int]:
    """Squares of 0 to 9; nobody is there for some of them, so many times. With it, how often each was asked."""
    times: Counter[int] = Counter()
    done: list[tuple[int, int]] = []
    under_way = most = 0

    async def square(number: int) -> int:
        nonlocal under_way, most
        times[number] += 1
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001 * (10 - number))
        under_way -= 1
        if number == refused:
            raise DensePathError("never")
        if times[number] <= absent.get(number, 0):
            raise Unavailable("not now")
        return number**2

    settings = JudgeExecutionConfig(**{"concurrency": 3, "rounds": 2, **execution})
    said = asyncio.run(core.ask_all(range(10), square, settings, lambda *each: done.append(each)))
    assert done == [(i, 10) for i in range(1, 11)]
    return said, times, most


def test_what_is_said_stands_in_the_order_of_what_was_asked() -> None:
    said, times, most = asked({})
    assert said == [i**2 for i in range(10)]
    assert set(times.values()) == {1}
    assert most == 3


def test_who_is_not_there_is_asked_again_later_up_to_the_rounds() -> None:
    said, times, _ = asked({3: 2, 9: 1})
    assert said == [i**2 for i in range(10)]
    assert (times[3], times[9], times[0]) == (3, 2, 1)
    with pytest.raises(Unavailable, match="not now"):
        asked({3: 3})


def test_what_will_never_be_said_stops_the_rest() -> None:
    with pytest.raises(DensePathError, match="never"):
        asked({}, refused=0, concurrency=1)


def test_nothing_to_ask() -> None:
    async def never(number: int) -> int:
        raise AssertionError

    assert asyncio.run(core.ask_all([], never, JudgeExecutionConfig(), lambda *each: None)) == []
