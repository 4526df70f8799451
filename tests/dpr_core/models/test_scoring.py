from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch

from dpr_core.config.model import Family
from dpr_core.data.encoding import TokenSequence, encode_prompt, encode_response, end_token
from dpr_core.models.extrapolation import ContrastivePolicy
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score, score_with_kl

FAMILIES: tuple[Family, ...] = get_args(Family)
TEXTS = [
    ("Start at 4, add 3.\n", "Steps: 4+3=2. The answer is 2."),
    ("Start at 1.\n", "The answer is 1."),
    ("Start at 1, add 2, add 3, add 4.\n", ""),
    ("x", "Steps: 0+1=1+2=3+1=4. The answer is 4."),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("budget", [1, 60, 100_000])
def test_scores_are_those_of_each_row_alone_whatever_batch_it_is_in(
    tiny: Callable[..., Any], family: Family, budget: int
) -> None:
    model, tokenizer = tiny(family)
    rows = [TokenSequence(encode_prompt(tokenizer, p), encode_response(tokenizer, r)) for p, r in TEXTS]
    if family == "qwen2":
        assert tokenizer.pad_token_id == end_token(tokenizer)
    scores = score(Policy(model), rows, budget, entropy=True)
    for i, row in enumerate(rows):
        ids = torch.tensor([row.prompt + row.response])
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, len(row.prompt) - 1 : -1]
        log_policy = torch.log_softmax(logits.double(), -1)
        length = len(row.response)
        assert row.response[-1] == end_token(tokenizer)
        expected = log_policy[range(length), list(row.response)]
        torch.testing.assert_close(scores.log_probs[i, :length].double(), expected, atol=1e-5, rtol=0)
        entropy = -(log_policy.exp() * log_policy).sum(-1)
        torch.testing.assert_close(scores.entropies[i, :length].double(), entropy, atol=1e-5, rtol=0)
        assert all(column[i, length:].eq(0).all() for column in scores)
    assert scores.log_probs[2, 0] < -0.1, "the end token alone must be scored"


def test_dropout_is_off(tiny: Callable[..., Any]) -> None:
    model, _ = tiny("llama", attention_dropout=0.5)
    policy, rows = Policy(model), [TokenSequence((1, 30, 31), (40, 41, 42))]
    expected = score(policy, rows, 100).log_probs
    policy.train()
    ids = torch.tensor([[1, 30, 31, 40, 41, 42]])
    assert not model(ids).logits.equal(model(ids).logits), "dropout should have been at work here"
    assert score(policy, rows, 100).log_probs.equal(expected)


def test_rows_keep_their_order_and_progress_counts_them(tiny: Callable[..., Any]) -> None:
    policy = Policy(tiny("llama")[0])
    rows = [TokenSequence((1, 2, 3, 4), (5,)), TokenSequence((1,), (5,)), TokenSequence((1, 2), (5, 6))]
    seen: list[tuple[int, int]] = []
    together = score(policy, rows, 8, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3, 3)
    for i, row in enumerate(rows):
        alone = score(policy, [row], 8).log_probs[0]
        torch.testing.assert_close(together.log_probs[i, : len(row.response)], alone, atol=1e-5, rtol=0)


def test_nothing_to_score(tiny: Callable[..., Any]) -> None:
    assert score(Policy(tiny("llama")[0]), [], 8).log_probs.shape == (0, 0)


KL_ROWS = [TokenSequence((1, 30, 31), (40, 41, 42)), TokenSequence((1,), (9,))]


def _log_policies(model: Any, row: TokenSequence) -> torch.Tensor:
    """(T, V) in double precision, from the whole row at once."""
    with torch.no_grad():
        logits = model(torch.tensor([row.prompt + row.response])).logits[0, len(row.prompt) - 1 : -1]
    return torch.log_softmax(logits.double(), -1)


@pytest.mark.parametrize("budget", [1, 100])
def test_kl_of_states_against_torch_distributions(tiny: Callable[..., Any], budget: int) -> None:
    p, q = tiny("llama")[0], tiny("llama", seed=1)[0]
    told: list[tuple[int, int]] = []
    (scores,), found, entropies = score_with_kl(
        Policy(p), [policy := Policy(q)], KL_ROWS, budget, 0.5, lambda *progress: told.append(progress)
    )
    assert told[-1] == (2, 2)
    for ours, alone in zip(scores, score(policy, KL_ROWS, budget), strict=True):
        torch.testing.assert_close(ours, alone, atol=1e-5, rtol=0)
    assert found.shape == (2, 3)
    assert found[1, 1:].eq(0).all()
    torch.testing.assert_close(entropies, score(Policy(p), KL_ROWS, 100, temperature=0.5, entropy=True).entropies)
    for i, row in enumerate(KL_ROWS):
        states = [torch.distributions.Categorical(logits=_log_policies(m, row)) for m in (p, q)]
        kl = torch.distributions.kl_divergence(*states).tolist()
        assert min(kl) > 0.1
        assert found[i, : len(kl)].tolist() == pytest.approx(kl, abs=1e-4)


@pytest.mark.parametrize("chunk", [1, 2**24])
@pytest.mark.parametrize("k", [0.5, 6.0])
def test_kl_of_contrastive_decoding_against_the_normalised_product(
    tiny: Callable[..., Any], k: float, chunk: int
) -> None:
    """pi_SFT^(1 + k) / pi_ref^k, divided by its sum over the vocabulary."""
    sft, ref = tiny("llama", deviation=0.15)[0], tiny("llama", seed=1, deviation=0.15)[0]
    together = ContrastivePolicy(Policy(sft, chunk), Policy(ref, chunk), k)
    scores, found, entropies = score_with_kl(together, [together.sft, together.reference], KL_ROWS, 100, 2.0)
    torch.testing.assert_close(scores[1].log_probs, score(together.reference, KL_ROWS, 100).log_probs)
    for i, row in enumerate(KL_ROWS):
        log_sft, log_ref = _log_policies(sft, row), _log_policies(ref, row)
        product = torch.exp((1 + k) * log_sft - k * log_ref)
        combined = product / product.sum(-1, keepdim=True)
        kl = (combined * (combined.log() - log_sft)).sum(-1).tolist()
        assert min(kl) > 1e-3
        assert found[i, : len(kl)].tolist() == pytest.approx(kl, abs=1e-4, rel=1e-4)
        entropy = torch.distributions.Categorical(logits=combined.log() / 2).entropy().tolist()
        assert entropies[i, : len(kl)].tolist() == pytest.approx(entropy, abs=1e-4)


def test_a_policy_has_no_kl_to_its_copy(tiny: Callable[..., Any]) -> None:
    rows = [TokenSequence((1, 30, 31), (40, 41, 42))]
    policy, copy = (Policy(tiny("gemma3")[0]) for _ in range(2))
    assert score_with_kl(policy, [copy], rows, 100)[1].tolist() == [[0.0] * 3]
