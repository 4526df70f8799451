import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from dpr_core.data.encoding import TokenSequence
from dpr_core.models.dense_reward import FORMULAS, DenseReward
from dpr_core.models.policy import Policy

ROWS = [TokenSequence((1, 30, 31), (40, 41, 0)), TokenSequence((1,), (50,)), TokenSequence((1, 2), (45, 46, 47, 48))]


def _by_hand(model: PreTrainedModel, row: TokenSequence) -> tuple[list[float], list[float]]:
    """Log-probs and soft values of one row's response tokens, with Python's floats."""
    with torch.no_grad():
        logits = model(torch.tensor([row.prompt + row.response])).logits[0].tolist()
    states = logits[len(row.prompt) - 1 : -1]
    values = [math.log(sum(math.exp(z) for z in state)) for state in states]
    return [z[a] - v for z, a, v in zip(states, row.response, values, strict=True)], values


@pytest.mark.parametrize("formula", ["baseline_relative", "with_value", "without_baseline"])
@pytest.mark.parametrize("budget", [1, 8, 1000])
def test_rewards_against_plain_models(tiny: Callable[..., Any], formula: str, budget: int) -> None:
    sft, reference = tiny("llama")[0], tiny("llama", seed=1)[0]
    scored = DenseReward(Policy(sft), Policy(reference), formula, budget)(ROWS)
    assert scored.mask.tolist() == [[t < len(r.response) for t in range(4)] for r in ROWS]
    for i, row in enumerate(ROWS):
        log_sft, values = _by_hand(sft, row)
        log_ref, _ = _by_hand(reference, row)
        following = [*values[1:], 0.0]
        expected = {
            "baseline_relative": [a - b for a, b in zip(log_sft, log_ref, strict=True)],
            "with_value": [a + v - w for a, v, w in zip(log_sft, values, following, strict=True)],
            "without_baseline": log_sft,
        }[formula]
        for found, wanted in ((scored.rewards, expected), (scored.log_sft, log_sft), (scored.log_ref, log_ref)):
            assert found[i].tolist() == pytest.approx([*wanted, *[0.0] * (4 - len(wanted))], abs=2e-5)


def test_the_paper_compares_three_formulas() -> None:
    assert sorted(FORMULAS) == ["baseline_relative", "with_value", "without_baseline"]


def test_two_equal_checkpoints_give_exactly_no_reward(tiny: Callable[..., Any]) -> None:
    scored = DenseReward(Policy(tiny("gemma3")[0]), Policy(tiny("gemma3")[0]), "baseline_relative", 8)(ROWS)
    assert scored.rewards.eq(0).all()


def test_both_models_are_frozen_and_score_without_dropout(tiny: Callable[..., Any]) -> None:
    sft, reference = (Policy(tiny("llama", seed=s, attention_dropout=0.5)[0]) for s in (0, 1))
    reward = DenseReward(sft, reference, "baseline_relative")
    expected = reward(ROWS).rewards
    sft.train()
    reference.train()
    assert reward(ROWS).rewards.equal(expected)
    assert not any(p.requires_grad for policy in (sft, reference) for p in policy.parameters())


def test_progress_counts_rows(tiny: Callable[..., Any]) -> None:
    seen: list[tuple[int, int]] = []
    policy = Policy(tiny("llama")[0])
    DenseReward(policy, policy, "without_baseline", 1)(ROWS, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
