import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from transformers import PreTrainedModel

from dpr_core.config.model import Family
from dpr_core.data.encoding import TokenSequence
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score
from dpr_core.rollouts import decode
from dpr_core.rollouts.decode import sample
from dpr_core.rollouts.engine import Completion, Sampling
from dpr_core.rollouts.in_process import ContrastiveReference, InProcessEngine

FAMILIES: tuple[Family, ...] = get_args(Family)
PROMPTS = [(1, 30, 31), (1, 60, 61, 62, 63, 64, 65), (1,), (2, 33), (1, 30, 31)]
SLIDING: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 4},
    "gemma3": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
}
NEVER = 10_000
"""An end token outside the vocabulary: nothing ends before the limit."""


def _model(tiny: Callable[..., Any], family: Family, sliding: bool) -> PreTrainedModel:
    model: PreTrainedModel = tiny(family, **(SLIDING.get(family, {}) if sliding else {}))[0]
    return model


def _some_token_in_the_middle(completions: list[Completion]) -> int:
    return completions[0].response[5]


@pytest.mark.parametrize("sliding", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_decoding_is_that_of_transformers(tiny: Callable[..., Any], family: Family, sliding: bool) -> None:
    model = _model(tiny, family, sliding)
    engine = InProcessEngine(model)
    end = _some_token_in_the_middle(engine.generate(PROMPTS, Sampling(0.0, 12, NEVER), seed=0))
    found = engine.generate(PROMPTS, Sampling(0.0, 12, end), seed=0)

    width = max(len(p) for p in PROMPTS)
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in PROMPTS])
    attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
    output = model.generate(
        input_ids=ids, attention_mask=attention, do_sample=False, max_new_tokens=12, eos_token_id=end, pad_token_id=0
    )
    for prompt, completion, row in zip(PROMPTS, found, output[:, width:].tolist(), strict=True):
        expected = row[: row.index(end) + 1] if end in row else row
        assert completion.prompt == prompt
        assert list(completion.response) == expected
    assert {c.ended(end) for c in found} == {True, False}, "some rows should end early and some be cut"


@pytest.mark.parametrize("sliding", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_its_log_probs_are_those_of_scoring_at_its_temperature(
    tiny: Callable[..., Any], family: Family, sliding: bool
) -> None:
    model = _model(tiny, family, sliding)
    engine = InProcessEngine(model, rows=3)
    end = _some_token_in_the_middle(engine.generate(PROMPTS, Sampling(0.7, 12, NEVER), seed=1))
    completions = engine.generate(PROMPTS * 4, Sampling(0.7, 12, end), seed=1)
    sequences = [TokenSequence(c.prompt, c.response) for c in completions]
    scores = score(Policy(model), sequences, 50, temperature=0.7)
    assert len({c.length for c in completions}) > 2
    for completion, row in zip(completions, scores.log_probs.tolist(), strict=True):
        assert list(completion.log_probs) == pytest.approx(row[: completion.length], abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_row_samples_does_not_depend_on_its_batch(tiny: Callable[..., Any], family: Family) -> None:
    model = _model(tiny, family, sliding=True)
    end = _some_token_in_the_middle(InProcessEngine(model).generate(PROMPTS, Sampling(1.0, 12, NEVER), seed=3))
    sampling = Sampling(1.0, 12, end)
    expected = InProcessEngine(model).generate(PROMPTS, sampling, seed=3)
    for rows in (1, 2, 3):
        found = InProcessEngine(model, rows).generate(PROMPTS, sampling, seed=3)
        assert [c.response for c in found] == [c.response for c in expected]
    assert expected[0].response != expected[4].response, "the same prompt twice should not give the same response"


def test_a_seed_decides(toy: Callable[..., Any]) -> None:
    engine = InProcessEngine(toy())
    prompts = [(1, 2)] * 20
    one, again, other = (engine.generate(prompts, Sampling(1.0, 6, 0), seed=s) for s in (1, 1, 2))
    assert one == again
    assert one != other


def test_nothing_follows_an_end_token_and_a_cut_response_has_none(toy: Callable[..., Any]) -> None:
    completions = InProcessEngine(toy()).generate([(1, 2), (3,)] * 100, Sampling(1.0, 4, 0), seed=0)
    lengths = Counter(c.length for c in completions)
    for c in completions:
        assert 0 not in c.response[:-1]
        assert c.length == len(c.response) == len(c.log_probs)
        assert c.ended(0) == (c.response[-1] == 0)
        assert c.ended(0) or c.length == 4
    assert set(lengths) == {1, 2, 3, 4}
    assert any(c.length == 4 and c.ended(0) for c in completions)
    assert any(c.length == 4 and not c.ended(0) for c in completions)


def test_prompts_are_read_once_and_then_one_token_a_row(
    toy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy()
    seen: list[list[list[int]]] = []
    forward = model.model.forward

    def recorded(**arguments: Any) -> Any:
        seen.append(arguments["position_ids"].tolist())
        return forward(**arguments)

    monkeypatch.setattr(model.model, "forward", recorded)
    InProcessEngine(model).generate([(4,), (1, 2, 3)], Sampling(1.0, 3, NEVER), seed=0)
    assert seen == [[[0, 1, 2], [0, 1, 2]], [[3], [1]], [[4], [2]]], "the longest prompt first"


def test_with_bfloat16_activations_the_logits_are_still_float32(
    toy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bfloat16 logits near 16 are 0.125 apart: responses would not be drawn from the policy that is scored."""
    seen: list[torch.Tensor] = []

    def recorded(logits: torch.Tensor, uniforms: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(logits)
        return sample(logits, uniforms, temperature)

    monkeypatch.setattr(decode, "sample", recorded)
    InProcessEngine(toy(), activations=torch.bfloat16).generate([(1, 2, 3), (4,)], Sampling(1.0, 3, NEVER), seed=0)
    assert len(seen) == 3
    for logits in seen:
        assert logits.dtype == torch.float32
        assert not logits.equal(logits.bfloat16().float())


def test_progress_and_order(toy: Callable[..., Any]) -> None:
    seen: list[tuple[int, int]] = []
    prompts = [(1, 2, 3), (1,), (2, 2)]
    found = InProcessEngine(toy(), rows=2).generate(
        prompts * 6, Sampling(1.0, 4, 0), seed=0, on_progress=lambda done, total: seen.append((done, total))
    )
    assert [c.prompt for c in found] == prompts * 6
    assert seen == [(16, 18), (18, 18)], "eight times the rows make a wave"
    assert InProcessEngine(toy()).generate([], Sampling(1.0, 4, 0), seed=0) == []


def _chi_square(counts: Counter[Any], expected: dict[Any, float], draws: int) -> float:
    assert set(counts) <= set(expected)
    return sum((counts[key] - draws * p) ** 2 / (draws * p) for key, p in expected.items())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_responses_are_as_frequent_as_the_policy_makes_them(toy: Callable[..., Any], temperature: float) -> None:
    """All 21 responses of at most two tokens against their exact probabilities: beyond 45.3 lies one in a thousand."""
    model, prompt, draws = toy(deviation=0.12), (3, 1), 4000
    expected: dict[tuple[int, ...], float] = {}
    with torch.no_grad():
        first = torch.softmax(model(torch.tensor([prompt])).logits[0, -1].double() / temperature, -1).tolist()
        expected[(0,)] = first[0]
        for a, b in itertools.product(range(1, 5), range(5)):
            logits = model(torch.tensor([(*prompt, a)])).logits[0, -1].double()
            expected[(a, b)] = first[a] * torch.softmax(logits / temperature, -1)[b].item()
    assert math.isclose(sum(expected.values()), 1)
    assert min(expected.values()) * draws > 5, "too rare for the statistic"
    completions = InProcessEngine(model).generate([prompt] * draws, Sampling(temperature, 2, 0), seed=11)
    assert _chi_square(Counter(c.response for c in completions), expected, draws) < 45.3


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_contrastive_responses_are_as_frequent_as_the_product_of_policies_makes_them(
    toy: Callable[..., Any], temperature: float
) -> None:
    """As above, from softmax(((1 + k) log pi - k log pi_reference) / temperature) by enumeration."""
    model, reference, k = toy(deviation=0.07), toy(seed=1, deviation=0.07), 0.5
    prompt, draws = (3, 1), 4000

    def policy(*state: int) -> list[float]:
        with torch.no_grad():
            ours, theirs = (
                torch.log_softmax(m(torch.tensor([state])).logits[0, -1].double(), -1) for m in (model, reference)
            )
        exact: list[float] = torch.softmax(((1 + k) * ours - k * theirs) / temperature, -1).tolist()
        return exact

    first = policy(*prompt)
    expected: dict[tuple[int, ...], float] = {(0,): first[0]}
    for a, b in itertools.product(range(1, 5), range(5)):
        expected[(a, b)] = first[a] * policy(*prompt, a)[b]
    assert min(expected.values()) * draws > 5, "too rare for the statistic"
    engine = InProcessEngine(model, contrast=ContrastiveReference(reference, k))
    completions = engine.generate([prompt] * draws, Sampling(temperature, 2, 0), seed=11)
    assert _chi_square(Counter(c.response for c in completions), expected, draws) < 45.3
    assert Counter(c.response for c in completions) != Counter(
        c.response for c in InProcessEngine(model).generate([prompt] * draws, Sampling(temperature, 2, 0), seed=11)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_contrastive_log_probs_are_those_of_the_combined_policy_whatever_the_batch(
    tiny: Callable[..., Any], family: Family
) -> None:
    """Rows of different length, some ending early: both caches must follow."""
    model, k = _model(tiny, family, sliding=True), 0.2
    reference = tiny(family, seed=3, **SLIDING.get(family, {}))[0]
    engine = InProcessEngine(model, rows=3, contrast=ContrastiveReference(reference, k))
    end = _some_token_in_the_middle(engine.generate(PROMPTS, Sampling(0.7, 12, NEVER), seed=1))
    completions = engine.generate(PROMPTS * 3, Sampling(0.7, 12, end), seed=1)
    assert len({c.length for c in completions}) > 2
    for c in completions:
        with torch.no_grad():
            ours, theirs = (
                torch.log_softmax(m(torch.tensor([c.prompt + c.response])).logits[0, len(c.prompt) - 1 : -1], -1)
                for m in (model, reference)
            )
        combined = torch.log_softmax(((1 + k) * ours - k * theirs) / 0.7, -1)
        expected = combined[range(c.length), list(c.response)].tolist()
        assert list(c.log_probs) == pytest.approx(expected, abs=1e-4)
    alone = InProcessEngine(model, rows=1, contrast=ContrastiveReference(reference, k)).generate(
        PROMPTS, Sampling(0.7, 12, end), 1
    )
    together = InProcessEngine(model, contrast=ContrastiveReference(reference, k)).generate(
        PROMPTS, Sampling(0.7, 12, end), 1
    )
    assert [c.response for c in alone] == [c.response for c in together]


def test_draw_by_hand() -> None:
    """Probabilities 1/10, 2/10, 3/10, 4/10: their cumulative sums decide."""
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log().repeat(6, 1)
    chosen, log_probs = sample(logits, torch.tensor([0.0, 0.09, 0.11, 0.31, 0.59, 0.99999994]), 1.0)
    assert chosen.tolist() == [0, 0, 1, 2, 2, 3]
    assert log_probs.exp().tolist() == pytest.approx([0.1, 0.1, 0.2, 0.3, 0.3, 0.4])


def test_draw_reports_log_probs_at_the_temperature_that_it_draws_at() -> None:
    """At temperature 1/2, odds of 1:2 become 1:4; a greedy draw reports those of temperature 1."""
    logits = torch.tensor([[1 / 3, 2 / 3]]).log().repeat(2, 1)
    chosen, log_probs = sample(logits, torch.tensor([0.19, 0.21]), 0.5)
    assert chosen.tolist() == [0, 1]
    assert log_probs.exp().tolist() == pytest.approx([1 / 5, 4 / 5])
    greedy, greedy_log_probs = sample(logits, torch.tensor([0.0, 0.0]), 0)
    assert greedy.tolist() == [1, 1]
    assert greedy_log_probs.exp().tolist() == pytest.approx([2 / 3, 2 / 3])


def test_draw_never_chooses_what_has_no_probability() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]]).repeat(1000, 1)
    uniforms = torch.cat(
        [torch.tensor([0.0, 0.5, 1 - 2**-24]), torch.rand(997, generator=torch.Generator().manual_seed(0))]
    )
    chosen, log_probs = sample(logits, uniforms, 1.0)
    assert set(chosen.tolist()) == {1, 3}
    assert log_probs.tolist() == pytest.approx([math.log(0.5)] * 1000)


def test_draw_over_a_large_vocabulary() -> None:
    logits = torch.zeros(1, 150_000)
    for u in (0.0, 0.25, 0.999, 1 - 2**-24):
        chosen, _ = sample(logits, torch.tensor([u]), 1.0)
        assert chosen.item() == pytest.approx(u * 150_000, abs=50)
