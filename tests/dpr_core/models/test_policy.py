from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from transformers import PreTrainedModel

from dpr_core.config.model import Family
from dpr_core.data.batching import collate
from dpr_core.data.encoding import TokenSequence
from dpr_core.errors import UsageError
from dpr_core.models.policy import Policy

FAMILIES: tuple[Family, ...] = get_args(Family)
ROWS = [
    TokenSequence((1, 30, 31), (40, 41, 42, 2)),
    TokenSequence((1, 33), (0, 0, 45, 46, 47, 48, 49, 50)),
    TokenSequence((1, 60, 61, 62, 63, 64), (2,)),
]
SLIDING = {
    "mistral": {"sliding_window": 4},
    "gemma3": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
}


def plain_logits(model: PreTrainedModel, row: TokenSequence) -> torch.Tensor:
    """(T, V): what transformers itself says about each response token of one row alone, with an attention mask."""
    ids = torch.tensor([row.prompt + row.response])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].double()
    return logits[len(row.prompt) - 1 : -1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes", ["plain", "sliding", "tied"])
def test_scores_are_those_of_the_plain_model(tiny: Callable[..., Any], family: Family, changes: str) -> None:
    model, _ = tiny(
        family, **{"plain": {}, "sliding": SLIDING.get(family, {}), "tied": {"tie_word_embeddings": True}}[changes]
    )
    with torch.no_grad():
        scores = Policy(model, logits_per_chunk=1000)(collate(ROWS), entropy=True)
    start = 0
    for row in ROWS:
        logits = plain_logits(model, row)
        log_policy = torch.log_softmax(logits, -1)
        part = slice(start, start + len(row.response))
        expected = log_policy[range(len(row.response)), list(row.response)]
        assert log_policy.std() > 0.3, "the policy is too uniform for this test to see anything"
        torch.testing.assert_close(scores.log_probs[part].double(), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(scores.values[part].double(), torch.logsumexp(logits, -1), atol=1e-5, rtol=0)
        entropy = -(log_policy.exp() * log_policy).sum(-1)
        torch.testing.assert_close(scores.entropies[part].double(), entropy, atol=1e-5, rtol=0)
        start = part.stop
    assert start == len(scores.log_probs)


def test_only_response_positions_reach_the_head(tiny: Callable[..., Any]) -> None:
    model, _ = tiny("qwen2")
    hidden, head, bias = Policy(model).response_states(collate(ROWS))
    assert hidden.shape == (4 + 8 + 1, 16)
    assert head is model.lm_head.weight
    assert bias is None


def test_a_model_that_caps_its_logits_is_refused(tiny: Callable[..., Any]) -> None:
    model, _ = tiny("gemma3", final_logit_softcapping=30.0)
    with pytest.raises(UsageError, match="cap"):
        Policy(model)


def test_gradients_reach_every_weight(tiny: Callable[..., Any]) -> None:
    for family in FAMILIES:
        model, _ = tiny(family)
        Policy(model, logits_per_chunk=1000)(collate(ROWS)).log_probs.sum().backward()
        without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert without == [], family


def test_bfloat16_activations_still_give_float32_scores(tiny: Callable[..., Any]) -> None:
    model, _ = tiny("llama")
    batch = collate(ROWS)
    exact = Policy(model)(batch).log_probs
    rounded = Policy(model, activations=torch.bfloat16)(batch).log_probs
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert torch.allclose(rounded, exact, atol=0.1)
    assert rounded.detach().bfloat16().float().sub(rounded).abs().max() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_with_bfloat16_activations_the_head_is_still_applied_in_float32(
    tiny: Callable[..., Any], family: Family
) -> None:
    model, _ = tiny(family)
    batch = collate(ROWS)
    policy = Policy(model, activations=torch.bfloat16)
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            body = model.get_decoder()(input_ids=batch.input_ids, use_cache=False).last_hidden_state[batch.predicts]
        found = policy(batch).log_probs
        exact = Policy(model)(batch).log_probs
    log_policy = torch.log_softmax(body.double() @ model.lm_head.weight.double().T, -1)
    expected = log_policy[range(len(batch.targets)), batch.targets]
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
    assert 0 < (found - exact).abs().max() < 0.5, "coarser than float32, but the same policy"


def test_with_bfloat16_activations_weights_and_gradients_stay_in_float32(tiny: Callable[..., Any]) -> None:
    model, _ = tiny("llama")
    Policy(model, activations=torch.bfloat16)(collate(ROWS)).log_probs.sum().backward()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
