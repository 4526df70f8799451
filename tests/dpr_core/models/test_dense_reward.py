import math
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dpr_core import rewards
from dpr_core.algorithms import policy_gradient
from dpr_core.algorithms.base import RolloutBatch
from dpr_core.config.base import parse
from dpr_core.config.pipeline import PipelineConfig
from dpr_core.config.reward import Formula
from dpr_core.data.batching import collate
from dpr_core.data.encoding import TokenSequence
from dpr_core.errors import UsageError
from dpr_core.models.dense_reward import TokenReward, random_signs
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score, score_with_kl

FORMULAS = get_args(Formula)
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
    scored = TokenReward(Policy(sft), Policy(reference), formula, budget)(ROWS)
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


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_teacher_is_rewarded_and_the_kl_stays_that_to_sft(tiny: Callable[..., Any], temperature: float) -> None:
    sft, reference, teacher, policy = (Policy(tiny("llama", seed=seed)[0]) for seed in range(4))
    reward = TokenReward(sft, reference, "baseline_relative", teacher=teacher)
    scored, log_sft = reward.with_log_sft(ROWS, temperature)
    assert log_sft.equal(score(sft, ROWS, None, temperature=temperature).log_probs)
    assert reward.with_kl(ROWS, policy)[1].allclose(score_with_kl(policy, [sft], ROWS, None)[1], atol=1e-6)
    for i, row in enumerate(ROWS):
        of_teacher, of_reference = (_by_hand(model.model, row)[0] for model in (teacher, reference))
        expected = [a - b for a, b in zip(of_teacher, of_reference, strict=True)]
        assert scored.rewards[i, : len(expected)].tolist() == pytest.approx(expected, abs=2e-5)


def test_distillation_on_policy_is_a_reward_against_sft_less_its_kl(tiny: Callable[..., Any]) -> None:
    """The advantages of the preset are log pi_T - log pi_old, by the reward and the algorithm that it sets."""
    sft, teacher, policy = (Policy(tiny("llama", seed=seed)[0]) for seed in range(3))
    methods = {"x": {"preset": "opd", "changes": ["reward.teacher={name: x}"]}}
    found = parse(PipelineConfig, {"backbone": {"type": "lab"}, "methods": methods}, "x").variants()["x"]
    reward = TokenReward(sft, sft, found.reward.formula, teacher=teacher)
    scored, log_sft = reward.with_log_sft(ROWS, 1.0)
    old = score(policy, ROWS, None).log_probs
    batch = RolloutBatch(scored.rewards, old, log_sft, scored.mask, torch.zeros_like(old))
    method = policy_gradient(found.reinforce.algorithm)
    advantages = method.credit(batch, found.reinforce.algorithm.kl_weight).advantages  # type: ignore[union-attr]
    for i, row in enumerate(ROWS):
        of_teacher, of_policy = (_by_hand(model.model, row)[0] for model in (teacher, policy))
        expected = [a - b for a, b in zip(of_teacher, of_policy, strict=True)]
        assert advantages[i, : len(expected)].tolist() == pytest.approx(expected, abs=2e-5)


def test_the_paper_compares_three_formulas_and_a_control_is_ours() -> None:
    assert sorted(FORMULAS) == ["baseline_relative", "random_sign", "with_value", "without_baseline"]


def test_a_formula_is_one_function_and_its_name(tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def surprise_gap(log_ref: Tensor, value_sft: Tensor, log_sft: Tensor) -> Tensor:
        return log_sft**2 - log_ref**2 + 0 * value_sft

    monkeypatch.setattr(rewards, "surprise_gap", surprise_gap, raising=False)
    scored = TokenReward(Policy(tiny("llama")[0]), Policy(tiny("llama", seed=1)[0]), "surprise_gap")(ROWS)
    expected = torch.where(scored.mask, scored.log_sft**2 - scored.log_ref**2, 0)
    assert scored.rewards.equal(expected)
    assert scored.rewards[scored.mask].abs().max() > 0.1


@pytest.mark.parametrize("budget", [1, 1000])
def test_a_random_sign_leaves_sizes_alone(tiny: Callable[..., Any], budget: int) -> None:
    policies = Policy(tiny("llama")[0]), Policy(tiny("llama", seed=1)[0])
    plain = TokenReward(*policies, "baseline_relative", budget)(ROWS).rewards
    found = TokenReward(*policies, "random_sign", budget, seed=4)(ROWS).rewards
    assert found.abs().equal(plain.abs())
    assert found.equal(plain * random_signs(ROWS, 4))
    assert not found.equal(plain)


def test_a_sign_depends_on_seed_state_and_token_and_on_nothing_else() -> None:
    signs = random_signs(ROWS, 0)
    for i, row in enumerate(ROWS):
        assert random_signs([row], 0)[0].equal(signs[i, : len(row.response)])
    long = TokenSequence((1,), tuple(range(2, 402)))
    same_start = TokenSequence((1,), (*long.response[:200], *reversed(long.response[200:])))
    other_prompt = TokenSequence((2,), long.response)
    first, second, third = random_signs([long, same_start, other_prompt], 0)
    assert first[:200].equal(second[:200])
    for other in (second[200:], third[200:], random_signs([long], 1)[0, 200:]):
        agreeing = (first[200:] == other).sum().item()
        assert 70 < agreeing < 130, "unrelated signs agree half of the time: 4 deviations are 28 of 200"


def test_signs_are_fair() -> None:
    rows = [TokenSequence((i,), tuple(range(100))) for i in range(100)]
    assert set(random_signs(rows, 0).flatten().tolist()) == {1.0, -1.0}
    assert abs(random_signs(rows, 0).mean().item()) < 0.04, "4 deviations of 10 000 signs"


def test_scale_and_clip_reach_every_formula_and_stay_out_of_the_log_probs(tiny: Callable[..., Any]) -> None:
    policies = Policy(tiny("llama")[0]), Policy(tiny("llama", seed=1)[0])
    for formula in FORMULAS:
        raw = TokenReward(*policies, formula)(ROWS)
        found = TokenReward(*policies, formula, scale=2.0, clip_above=0.1)(ROWS)
        assert found.rewards.equal((raw.rewards / 2).clamp(max=0.1))
        assert not found.rewards.equal(raw.rewards)
        assert found.log_sft.equal(raw.log_sft)


def test_the_gap_of_soft_values_against_plain_models(tiny: Callable[..., Any]) -> None:
    sft, reference = tiny("llama")[0], tiny("llama", seed=1)[0]
    scored = TokenReward(Policy(sft), Policy(reference), "baseline_relative", 8)(ROWS)
    for i, row in enumerate(ROWS):
        (_, ours), (_, theirs) = _by_hand(sft, row), _by_hand(reference, row)
        expected = [a - b for a, b in zip(ours, theirs, strict=True)]
        assert scored.value_gap[i].tolist() == pytest.approx([*expected, *[0.0] * (4 - len(expected))], abs=2e-5)


@pytest.mark.parametrize("arithmetic", [None, "bfloat16"])
def test_what_comes_with_the_reward_is_what_passes_of_its_own_give(tiny: Callable[..., Any], arithmetic: Any) -> None:
    """log pi_SFT at a temperature, and the exact KL of a policy, neither of them in the reward's arithmetic."""
    policy, sft, reference = (Policy(tiny("llama", seed=seed)[0]) for seed in (2, 0, 1))
    reward = TokenReward(sft, reference, "baseline_relative", 8, arithmetic=arithmetic)
    tempered, kl = reward.with_log_sft(ROWS, 0.7), reward.with_kl(ROWS, policy)
    for scored, *_ in (tempered, kl, reward.with_log_sft(ROWS, 1.0)):
        torch.testing.assert_close(tuple(scored), tuple(reward(ROWS)), atol=1e-5, rtol=0)
    torch.testing.assert_close(tempered[1], score(sft, ROWS, 8, temperature=0.7).log_probs)
    torch.testing.assert_close(reward.with_log_sft(ROWS, 1.0)[1], score(sft, ROWS, 8).log_probs)
    torch.testing.assert_close(kl[1], score_with_kl(policy, [sft], ROWS, 8)[1])


def test_two_equal_checkpoints_give_exactly_no_reward(tiny: Callable[..., Any]) -> None:
    scored = TokenReward(Policy(tiny("gemma3")[0]), Policy(tiny("gemma3")[0]), "baseline_relative", 8)(ROWS)
    assert scored.rewards.eq(0).all()


def test_both_models_are_frozen_and_score_without_dropout(tiny: Callable[..., Any]) -> None:
    sft, reference = (Policy(tiny("llama", seed=s, attention_dropout=0.5)[0]) for s in (0, 1))
    reward = TokenReward(sft, reference, "baseline_relative")
    expected = reward(ROWS).rewards
    sft.train()
    reference.train()
    assert reward(ROWS).rewards.equal(expected)
    assert not any(p.requires_grad for policy in (sft, reference) for p in policy.parameters())


def test_progress_counts_rows(tiny: Callable[..., Any]) -> None:
    seen: list[tuple[int, int]] = []
    policy = Policy(tiny("llama")[0])
    TokenReward(policy, policy, "without_baseline", 1)(ROWS, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("formula", ["baseline_relative", "without_baseline"])
@pytest.mark.parametrize(
    ("arithmetic", "temperature", "taught"),
    [(None, 1.0, False), (None, 0.7, False), ("bfloat16", 0.7, False), (None, 1.0, True), ("bfloat16", 0.7, True)],
)
def test_the_reward_over_the_vocabulary_is_that_of_plain_models(
    tiny: Callable[..., Any], formula: str, arithmetic: Any, temperature: float, taught: bool
) -> None:
    """Its expectation, with the scores that passes of their own give, and what a policy is to have the most of."""
    policy, sft, reference, teacher = (Policy(tiny("llama", seed=seed)[0]) for seed in (2, 0, 1, 3))
    reward = TokenReward(
        sft, reference, formula, 8, 2.0, 0.4, arithmetic=arithmetic, teacher=teacher if taught else None
    )
    found = reward.with_expected(ROWS, policy, temperature)
    scored, log_sft = reward.with_log_sft(ROWS, temperature)
    actor = score(policy, ROWS, 1000, temperature=temperature, entropy=True)
    for ours, theirs in ((found.scored, scored), (found.policy, actor), ((found.log_sft,), (log_sft,))):
        torch.testing.assert_close(tuple(ours), tuple(theirs), atol=1e-5, rtol=0)

    def over_vocabulary(model: Policy, row: TokenSequence, at: float = 1.0, rounded: bool = False) -> Tensor:
        ids, part = torch.tensor([row.prompt + row.response]), slice(len(row.prompt) - 1, -1)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            hidden = model.model.get_decoder()(ids).last_hidden_state[0, part]
        return torch.log_softmax(hidden.double() @ model.model.get_output_embeddings().weight.double().T / at, -1)

    for i, row in enumerate(ROWS):
        target, ref = (over_vocabulary(m, row, 1.0, bool(arithmetic)) for m in (reward.target, reference))
        rewards = ((target - ref if formula == "baseline_relative" else target) / 2).clamp(max=0.4)
        log_policy, log_sft = (over_vocabulary(model, row, temperature) for model in (policy, sft))
        expected = (log_policy.exp() * rewards).sum(-1)
        torch.testing.assert_close(found.expected[i, : len(row.response)].double(), expected, atol=2e-5, rtol=0)
        wanted = partial(reward.wanted, temperature=temperature, kl_weight=0.3)
        objective = policy(collate([row]), temperature=temperature, wanted=wanted)
        kl = (log_policy.exp() * (log_policy - log_sft)).sum(-1)
        torch.testing.assert_close(objective.double(), expected - 0.3 * kl, atol=2e-5, rtol=0)


def test_a_teacher_with_other_rows_has_no_reward_of_the_whole_vocabulary(tiny: Callable[..., Any]) -> None:
    sft, teacher = (Policy(tiny("llama", seed=seed)[0]) for seed in range(2))
    rows = len(sft.model.get_output_embeddings().weight)
    teacher.model.resize_token_embeddings(rows + 8)
    reward = TokenReward(sft, sft, "baseline_relative", teacher=teacher)
    assert reward(ROWS).rewards.isfinite().all()
    with pytest.raises(UsageError, match=f"the teacher's head has {rows + 8} rows and the policy's {rows}"):
        reward.check_per_token()
