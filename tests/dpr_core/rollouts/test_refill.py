"""Slots whose rows have ended are filled again, and no row can tell: each is what a loop without a cache makes it."""

import itertools
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from transformers import PreTrainedModel

from dpr_core.config.model import Family
from dpr_core.masking import causal_mask
from dpr_core.rollouts.decode import group_by_age
from dpr_core.rollouts.engine import Completion, Sampling
from dpr_core.rollouts.in_process import ContrastiveReference, InProcessEngine
from dpr_core.rollouts.kv_cache import Decoder, SlotKVCache, Spans

FAMILIES: tuple[Family, ...] = get_args(Family)
WINDOW = 4
SLIDING: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": WINDOW},
    "gemma3": {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
}
LENGTHS = [3, 1, 9, 2, 14, 3, 5, 1, 1, 7, 2, 4]
PROMPTS = [tuple(30 + (i * 7 + j * 3) % 60 for j in range(length)) for i, length in enumerate(LENGTHS)]
"""One token to fourteen: the window is shorter than most."""
DIFFERENT = list(itertools.product(range(5), repeat=4))
"""Prompts that share no reading."""
LIMIT = 10
SEED = 7


def naively(model: Any, end: int, temperature: float) -> list[Completion]:
    """Every prompt alone, every token by a forward pass of transformers' over the whole sequence."""
    uniforms = torch.rand(len(PROMPTS), LIMIT, generator=torch.Generator().manual_seed(SEED)).double()
    found = []
    for prompt, numbers in zip(PROMPTS, uniforms.tolist(), strict=True):
        response: list[int] = []
        log_probs: list[float] = []
        while len(response) < LIMIT and end not in response:
            with torch.no_grad():
                logits = (
                    model(torch.tensor([[*prompt, *response]]), use_cache=False).logits[0, -1].double() / temperature
                )
            cumulative = torch.softmax(logits, -1).cumsum(0)
            response.append(int((cumulative <= numbers[len(response)] * cumulative[-1]).sum()))
            log_probs.append(torch.log_softmax(logits, -1)[response[-1]].item())
        found.append(Completion(prompt, tuple(response), tuple(log_probs)))
    return found


def assert_same(found: list[Completion], expected: list[Completion]) -> None:
    assert [(c.prompt, c.response) for c in found] == [(c.prompt, c.response) for c in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert list(ours.log_probs) == pytest.approx(theirs.log_probs, abs=1e-4)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[PreTrainedModel], list[tuple[int, int]]]:
    """`calls(model)` -> filled with (rows, tokens of each) of every forward pass."""

    def watch(model: PreTrainedModel) -> list[tuple[int, int]]:
        body: Any = model.get_decoder()
        forward, seen = body.forward, []

        def recorded(**arguments: Any) -> Any:
            seen.append(tuple(arguments["input_ids"].shape))
            return forward(**arguments)

        monkeypatch.setattr(body, "forward", recorded)
        return seen

    return watch


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_is_what_a_loop_without_a_cache_makes_of_it(
    tiny: Callable[..., Any], family: Family, temperature: float
) -> None:
    model = tiny(family, **SLIDING.get(family, {}))[0]
    endless = [c.response for c in naively(model, 10_000, temperature)]
    places = {end: {r.index(end) for r in endless if end in r} for r in endless for end in r}
    end = max(places, key=lambda token: len(places[token]))
    expected = naively(model, end, temperature)
    assert len({c.length for c in expected}) > 2, "the lengths are to be ragged"
    for rows in (1, 2, 3, 5, 12, 50):
        engine = InProcessEngine(model, rows)
        assert_same(engine.generate(PROMPTS, Sampling(temperature, LIMIT, end), SEED), expected)


def test_slots_are_filled_again_while_others_go_on(toy: Callable[..., Any], calls: Callable[..., Any]) -> None:
    model = toy()
    seen = calls(model)
    found = InProcessEngine(model, rows=8).generate(DIFFERENT[192:224], Sampling(1.0, 20, 0), SEED)
    lengths = [c.length for c in found]
    assert max(lengths) >= 10
    assert len(set(lengths)) > 5
    reads = [rows for rows, tokens in seen if tokens == 4]
    steps = [rows for rows, tokens in seen if tokens == 1]
    assert reads[0] == 8
    assert len(reads) > 3
    assert sum(reads) == 32
    # No step is spent on a row that has ended.
    assert sum(reads) + sum(steps) == sum(lengths)
    by_batches = sum(max(lengths[i : i + 8]) for i in range(0, 32, 8))
    assert len(seen) < 0.8 * by_batches + len(reads)
    assert max(steps) == 8


def test_a_prompt_of_several_rows_is_read_once(tiny: Callable[..., Any], calls: Callable[..., Any]) -> None:
    model = tiny("llama")[0]
    prompts = [prompt for prompt in PROMPTS for _ in range(3)]
    alone = InProcessEngine(model, rows=1).generate(prompts, Sampling(1.0, LIMIT, 10_000), SEED + 1)
    seen = calls(model)
    assert_same(InProcessEngine(model).generate(prompts, Sampling(1.0, LIMIT, 10_000), SEED + 1), alone)
    assert seen == [(len(PROMPTS), max(LENGTHS)), *[(len(prompts), 1)] * (LIMIT - 1)]


def test_prompts_wait_until_an_eighth_of_the_slots_is_free(toy: Callable[..., Any], calls: Callable[..., Any]) -> None:
    model = toy()
    seen = calls(model)
    InProcessEngine(model, rows=32).generate(DIFFERENT[:128], Sampling(1.0, 20, 0), SEED)
    reads = [rows for rows, tokens in seen if tokens == 4]
    assert reads[0] == 32
    assert min(reads[1:-1]) >= 4
    assert sum(reads) == 128


def test_young_rows_are_not_read_as_far_as_old_ones(toy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    read = whole = 0
    logits = Decoder.logits

    def counted(self: Decoder, first: int, ids: Any, positions: Any, last: Any, spans: Spans) -> Any:
        nonlocal read, whole
        assert sum(rows for rows, _ in spans) == len(ids)
        assert max(width for _, width in spans) == int(positions[:, -1].max()) + 1
        read += sum(rows * width for rows, width in spans)
        whole += len(ids) * max(width for _, width in spans)
        return logits(self, first, ids, positions, last, spans)

    monkeypatch.setattr(Decoder, "logits", counted)
    InProcessEngine(toy(), rows=8).generate([(1, 2)] * 64, Sampling(1.0, 20, 0), SEED)
    assert read < 0.9 * whole


def test_the_order_of_the_prompts_decides_nothing_but_their_numbers(tiny: Callable[..., Any]) -> None:
    """Greedy decoding uses no numbers: prompts in another order have the same responses."""
    model = tiny("gemma3", **SLIDING["gemma3"])[0]
    sampling = Sampling(0.0, LIMIT, 10_000)
    forward = InProcessEngine(model, rows=3).generate(PROMPTS, sampling, SEED)
    backward = InProcessEngine(model, rows=3).generate(PROMPTS[::-1], sampling, SEED)
    assert_same(backward[::-1], forward)


def test_both_models_of_contrastive_decoding_follow(tiny: Callable[..., Any]) -> None:
    model, reference = (tiny("mistral", seed=seed, **SLIDING["mistral"])[0] for seed in (0, 3))
    alone, together = (
        InProcessEngine(model, rows, contrast=ContrastiveReference(reference, 0.3)).generate(
            PROMPTS, Sampling(1.0, LIMIT, 35), SEED
        )
        for rows in (1, 3)
    )
    assert_same(together, alone)


def test_the_models_attention_is_as_before_and_flash_attention_is_not_used(tiny: Callable[..., Any]) -> None:
    """Flash attention is not installed here: it would fail if it were called."""
    model, sampling = tiny("llama")[0], Sampling(1.0, LIMIT, 35)
    expected = InProcessEngine(model).generate(PROMPTS, sampling, SEED)
    model.set_attn_implementation("eager")
    assert_same(InProcessEngine(model).generate(PROMPTS, sampling, SEED), expected)
    assert model.config._attn_implementation == "eager"
    model.config._attn_implementation = "flash_attention_2"
    assert_same(InProcessEngine(model).generate(PROMPTS, sampling, SEED), expected)
    assert model.config._attn_implementation == "flash_attention_2"


def test_rows_in_groups_by_hand() -> None:
    """Slots from the oldest row to the youngest; the first two rows belong in the first two places."""
    assert group_by_age([0, 1, 2, 3, 4], 2) == [0, 1, 2, 3, 4]
    assert group_by_age([1, 0, 3], 2) == [0, 1, 3], "within a group nothing moves"
    assert group_by_age([1, 2, 3, 4], 2) == [2, 1, 4, 3], "the row of slot 0 has ended"
    assert group_by_age([5], 2) == [5]
    assert group_by_age([], 2) == []


def test_a_mask_by_hand() -> None:
    """Two rows whose next tokens are at positions 1 and 3."""
    positions = torch.tensor([[1], [3]])
    seen = causal_mask(positions, 5, None, torch.float32)[:, 0, 0] == 0
    assert seen.tolist() == [[True, True, False, False, False], [True, True, True, True, False]]
    seen = causal_mask(positions, 5, 2, torch.float32)[:, 0, 0] == 0
    assert seen.tolist() == [[True, True, False, False, False], [False, False, True, True, False]]


def test_slots_by_hand() -> None:
    """One head of width 1: a prompt of two tokens and one of one, a token each, and the second moves over the first."""
    slots = SlotKVCache(count=2, heads=1, most=4)

    def update(first: int, positions: list[list[int]], keys: list[list[float]], width: int) -> list[list[float]]:
        slots.set_positions(first, torch.tensor(positions), width)
        new = torch.tensor(keys)[:, None, :, None]
        kept, values = slots.update(new, -new, 0)
        assert values.equal(-kept)
        return kept[:, 0, :, 0].tolist()

    assert update(0, [[0, 1]], [[1.0, 2.0]], 2) == [[1.0, 2.0]]
    assert update(1, [[0]], [[5.0]], 1) == [[5.0]]
    assert update(0, [[2], [1]], [[3.0], [6.0]], 3) == [[1.0, 2.0, 3.0], [5.0, 6.0, 0.0]]
    assert slots.columns == 4, "twice as many as there were"
    slots.move(torch.tensor([1]), torch.tensor([0]), 3)
    assert update(0, [[2]], [[7.0]], 3) == [[5.0, 6.0, 7.0]]
