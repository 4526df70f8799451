"""What rounding does to a reward, which arithmetic is chosen by it, and that nothing else computes in it."""

import logging
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.reinforce import ReinforceConfig
from dpr_core.config.reward import RewardConfig, RewardDefinitionConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.diagnostics.rounding import fastest, rounding_shares
from dpr_core.models.dense_reward import TokenReward
from dpr_core.models.policy import Policy
from dpr_core.recorder import InMemoryRecorder
from dpr_core.rollouts.engine import Completion
from dpr_core.training.reinforce_loop import ReinforceLoop

ROWS = [TokenSequence((1, 30, 31), tuple(range(40 + i, 52 + i))) for i in range(4)]
BFLOAT16 = {"backbone": {"dtype": "bfloat16"}}


@pytest.fixture
def rewarded(tiny: Callable[..., Any]) -> Callable[..., TokenReward]:
    """The reward of two nearby models that are run in a type."""

    def build(activations: torch.dtype, **settings: Any) -> TokenReward:
        models = [tiny("llama")[0], tiny("llama")[0]]
        with torch.no_grad():
            for weight in models[1].parameters():
                weight.add_(2e-3)
        policies = [Policy(model, activations=activations) for model in models]
        return TokenReward(policies[0], policies[1], "baseline_relative", 64, **settings)

    return build


def test_a_reward_computed_in_float32_is_that_of_float32_models(rewarded: Callable[..., TokenReward]) -> None:
    exact = rewarded(torch.float32)(ROWS)
    asked = rewarded(torch.bfloat16, arithmetic="float32")
    assert asked.differs
    assert asked(ROWS).rewards.equal(exact.rewards)
    assert not rewarded(torch.bfloat16)(ROWS).rewards.equal(exact.rewards)
    assert asked.sft.activations == torch.bfloat16, "all else is computed as before"


def test_a_reward_of_rounded_weights_is_bitwise_that_of_whole_ones(rewarded: Callable[..., TokenReward]) -> None:
    rounded = rewarded(torch.bfloat16, arithmetic="bfloat16")
    whole = rewarded(torch.bfloat16, arithmetic="bfloat16", keep_weights=True)
    assert not rounded.differs
    assert rounded(ROWS).rewards.equal(whole(ROWS).rewards)
    assert {weight.dtype for weight in whole.sft.parameters()} == {torch.float32}


def test_rounding_is_measured_against_float32(rewarded: Callable[..., TokenReward]) -> None:
    reward = rewarded(torch.bfloat16, keep_weights=True)
    shares = rounding_shares(reward, ROWS, ("bfloat16", "float32"))
    exact, rounded = (replace(reward, arithmetic=each)(ROWS).rewards for each in ("float32", "bfloat16"))
    by_hand = (rounded - exact).square().mean().sqrt() / exact.std(correction=0)
    assert shares["bfloat16"] == pytest.approx(float(by_hand), rel=1e-4)
    assert shares["bfloat16"] > 0.01
    assert shares["float32"] == 0


@pytest.mark.parametrize(
    ("shares", "chosen"),
    [
        ({"bfloat16": 0.05, "tf32": 0.01}, "bfloat16"),
        ({"bfloat16": 0.2, "tf32": 0.01}, "tf32"),
        ({"bfloat16": 0.2, "tf32": 0.11}, "float32"),
        ({"bfloat16": 0.2}, "float32"),
    ],
)
def test_the_fastest_type_that_rounds_little_enough_is_chosen(shares: dict[Any, float], chosen: str) -> None:
    assert fastest(shares) == chosen


def test_the_kl_begins_at_zero_whatever_the_reward_is_computed_in(
    tiny: Callable[..., Any], rewarded: Callable[..., TokenReward]
) -> None:
    """Beside pi_SFT in float32, a policy in bfloat16 would have moved before it has learned anything."""
    policy: Any = Policy(tiny("llama")[0], activations=torch.bfloat16)
    execution = ExecutionConfig(tokens_per_micro_batch=64)
    config = ReinforceConfig(batch_size=4, rollout_batch_size=4, execution=execution)
    parts: Any = {
        "engine": SimpleNamespace(version=0),
        "trainer": None,
        "end_token": 0,
        "decode": str,
        "recorder": InMemoryRecorder(),
    }
    loop = ReinforceLoop(policy, reward=rewarded(torch.bfloat16, arithmetic="float32"), config=config, **parts)
    rollout = loop.score([Completion(row.prompt, row.response, (0.0,) * len(row.response)) for row in ROWS])
    assert rollout.sequence_kl == 0
    assert not rollout.scored.log_sft.equal(rollout.log_sft)


@pytest.mark.parametrize(
    ("asked", "sft", "settled"),
    [
        ("auto", {"backbone": None}, "as_sft"),
        ("auto", {"backbone": {"dtype": "float32"}}, "as_sft"),
        ("auto", BFLOAT16, "measured"),
        ("bfloat16", BFLOAT16, "as_sft"),
        ("float32", BFLOAT16, "float32"),
        ("float32", {"backbone": None}, "as_sft"),
        ("measured", {"backbone": None}, "measured"),
        ("as_sft", BFLOAT16, "as_sft"),
    ],
)
def test_rewards_computed_as_sft_keep_their_keys(asked: Any, sft: dict[str, Any], settled: str) -> None:
    config = RewardConfig(arithmetic=asked).settled(sft)
    assert config.arithmetic == settled
    assert config.identity().get("arithmetic") == (None if settled == "as_sft" else settled)


def test_a_definition_as_sft_is_the_same_bytes_as_before_there_was_a_choice() -> None:
    plain = RewardDefinitionConfig(reference=(0.5,))
    assert "arithmetic" not in plain.model_dump_json()
    assert "rounding" not in plain.model_dump_json()
    chosen = plain.model_copy(update={"arithmetic": "tf32", "rounding": {"tf32": 0.01}})
    assert RewardDefinitionConfig.model_validate_json(chosen.model_dump_json()) == chosen


def test_ties_of_bfloat16_are_told_of_at_load(
    tiny: Callable[..., Any], tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    from dpr_core.config.model import PretrainedBackboneConfig
    from dpr_core.models.checkpoints import load_backbone, save

    model, tokenizer = tiny("llama")
    name = str(tmp_path)
    caplog.set_level(logging.WARNING, "dense_path")
    save(model, tokenizer, tmp_path)
    load_backbone(PretrainedBackboneConfig(name=name))
    assert not caplog.records
    save(model.to(torch.float16).float(), tokenizer, tmp_path)
    load_backbone(PretrainedBackboneConfig(name=name, dtype="float32"))
    assert not caplog.records
    load_backbone(PretrainedBackboneConfig(name=name))
    assert "% of the weights lie halfway between two bfloat16 numbers" in caplog.text
