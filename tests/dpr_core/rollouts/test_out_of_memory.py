"""Answers for which the memory is too small: fewer at once, and the same ones."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dpr_core.errors import DensePathError
from dpr_core.rollouts.decode import DecodeLoop
from dpr_core.rollouts.engine import Completion, Sampling
from dpr_core.rollouts.in_process import InProcessEngine
from dpr_core.rollouts.kv_cache import Decoder
from tests.interruption import Killed

SAMPLING = Sampling(0.8, 12, 10_000)
"""Nothing ends before the limit."""
PROMPTS = [(1, 30 + i, 31, *range(32, 32 + i % 5)) for i in range(41)]
LENGTHS = sorted(map(len, PROMPTS), reverse=True)
FOUR, TWO = 4 * 19, 2 * 19
"""As many of the longest rows as are drawn, of 7 and 12 tokens."""


@pytest.fixture
def crowd(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], int]], list[int]]:
    """`crowd(room)`: memory runs out once the slots in use hold more than `room(n)` tokens, wherever in an answer that
    is, where n answers have come to their end.

    What it returns is filled with how many tokens the prompts had whose answers came to their end.
    """
    logits, completions = Decoder.logits, DecodeLoop.completions
    ended: list[int] = []

    def limit(room: Callable[[int], int]) -> list[int]:
        def crowded(self: Any, first: int, ids: Any, positions: Any, last: Any, spans: Any) -> Any:
            if (first + len(ids)) * max(width for _, width in spans) > room(len(ended)):
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
            return logits(self, first, ids, positions, last, spans)

        def counted(self: Any) -> Iterator[tuple[int, Completion]]:
            for row, completion in completions(self):
                ended.append(len(completion.prompt))
                yield row, completion

        monkeypatch.setattr(Decoder, "logits", crowded)
        monkeypatch.setattr(DecodeLoop, "completions", counted)
        return ended

    return limit


def _assert_same(found: list[Completion], expected: list[Completion]) -> None:
    assert [(c.prompt, c.response) for c in found] == [(c.prompt, c.response) for c in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.log_probs == pytest.approx(theirs.log_probs, abs=1e-4)


def test_the_rows_are_halved_and_every_row_keeps_its_numbers(
    tiny: Callable[..., Any], crowd: Callable[..., list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny("llama")[0]
    expected = InProcessEngine(model, rows=1).generate(PROMPTS, SAMPLING, seed=4)
    told: list[tuple[int, int]] = []
    ended = crowd(lambda done: FOUR if done < 32 else TWO)
    engine = InProcessEngine(model, rows=8)
    found = engine.generate(PROMPTS, SAMPLING, 4, lambda *done: told.append(done))
    _assert_same(found, expected)
    assert told == [(32, 41), (41, 41)], "a wave of eight times four rows"
    assert ended == LENGTHS, "what was drawn before the memory ran out is not drawn again"
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"out of memory: going on with {n} rows in place of {2 * n}" for n in (4, 2)]
    # What was found holds for the next call.
    ended.clear()
    _assert_same(engine.generate(PROMPTS, SAMPLING, seed=4), expected)
    assert (ended, len(caplog.records)) == (LENGTHS, 2)


def test_what_was_kept_before_an_interruption_is_not_drawn_again(
    tiny: Callable[..., Any], crowd: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama")[0]
    expected = InProcessEngine(model, rows=1).generate(PROMPTS, SAMPLING, seed=4)
    ended = crowd(lambda done: FOUR)
    drawn: dict[int, Completion] = {}

    def die(done: int, total: int) -> None:
        if done == 32:
            raise Killed

    with pytest.raises(Killed):
        InProcessEngine(model, rows=8).generate(PROMPTS, SAMPLING, 4, die, drawn)
    assert [len(c.prompt) for c in drawn.values()] == LENGTHS[:32]
    # A process that is started again does not know yet what fits.
    _assert_same(InProcessEngine(model, rows=8).generate(PROMPTS, SAMPLING, 4, drawn=drawn), expected)
    assert ended == LENGTHS


def test_a_row_that_does_not_fit_alone_is_told(tiny: Callable[..., Any], crowd: Callable[..., list[int]]) -> None:
    crowd(lambda done: 17)
    with pytest.raises(DensePathError, match=r"does not hold one row of up to 7 \+ 12 tokens .*can't allocate memory"):
        InProcessEngine(tiny("llama")[0], rows=4).generate(PROMPTS, SAMPLING, seed=4)


def test_other_failures_are_not_taken_for_a_lack_of_memory(
    tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("size mismatch")

    monkeypatch.setattr(Decoder, "logits", broken)
    engine = InProcessEngine(tiny("llama")[0], rows=4)
    with pytest.raises(RuntimeError, match="size mismatch"):
        engine.generate(PROMPTS, SAMPLING, seed=4)
    assert engine.limits._found == {}
