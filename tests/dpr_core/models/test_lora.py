"""LoRA: only adapters learn, what is saved is the merged model, and a run that was killed goes on as it would have."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch._subclasses import FakeTensorMode
from transformers import AutoModelForCausalLM

from dpr_core.algorithms.sft import SupervisedFineTuning
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.model import Family
from dpr_core.config.training import LoRAConfig, OptimizerConfig, SFTConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.errors import UsageError
from dpr_core.models.checkpoints import load_model, save
from dpr_core.models.critic import Critic
from dpr_core.models.dense_reward import TokenReward
from dpr_core.models.lora import add_adapters, merged_weights
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score
from dpr_core.rollouts.engine import Sampling
from dpr_core.rollouts.in_process import InProcessEngine
from dpr_core.training.trainer import Trainer

FAMILIES: tuple[Family, ...] = get_args(Family)
ROWS = [TokenSequence((5, 6, 7), (8, 9, 10, 11, 1)), TokenSequence((7, 30), (40, 50, 1)), TokenSequence((9,), (12,))]
SETTINGS = OptimizerConfig(learning_rate=3e-2, batch_size=3, warmup_ratio=0)


def log_probs(model: Any) -> torch.Tensor:
    return score(Policy(model), ROWS, 512).log_probs


def trained(model: Any, settings: LoRAConfig, steps: int = 3) -> Trainer:
    add_adapters(model, settings, seed=0)
    trainer = Trainer(Policy(model), SETTINGS, 10, ExecutionConfig())
    for _ in range(steps):
        trainer.step(ROWS, SupervisedFineTuning())
    return trainer


@pytest.fixture(autouse=True)
def _needs_peft() -> None:
    pytest.importorskip("peft")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_weights_give_the_log_probs_of_the_model_with_adapters(
    tiny: Callable[..., Any], family: Family, tied: bool, tmp_path: Path
) -> None:
    model, tokenizer = tiny(family, tie_word_embeddings=tied)
    names, before = list(model.state_dict()), log_probs(model)
    trained(model, LoRAConfig(rank=4, dropout=0.5))
    after = log_probs(model)
    assert (after - before).abs().max() > 0.1
    save(model, tokenizer, tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert list(plain.state_dict()) == names
    for loaded in (plain, load_model(tmp_path)):
        torch.testing.assert_close(log_probs(loaded), after, atol=1e-5, rtol=0)
    # Saving half-way must not disturb the training that goes on.
    assert log_probs(model).equal(after)


def test_the_merged_weight_by_hand(tiny: Callable[..., Any]) -> None:
    """W + (alpha / rank) B A."""
    model, _ = tiny("llama")
    before = model.model.layers[0].self_attn.q_proj.weight.clone()
    add_adapters(model, LoRAConfig(rank=2, alpha=6.0, targets=("q_proj",)), seed=0)
    layer = model.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_()
    expected = before + 3 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    found = merged_weights(model)
    assert found is not None
    torch.testing.assert_close(found["model.layers.0.self_attn.q_proj.weight"], expected)


def test_what_is_merged_leaves_a_gpu_and_tied_weights_stay_one(tiny: Callable[..., Any]) -> None:
    """On a GPU that torch imagines: none of its tensors holds numbers."""
    model, _ = tiny("llama", tie_word_embeddings=True)
    add_adapters(model, LoRAConfig(rank=2), seed=0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_gpu: Any = {id(p): torch.nn.Parameter(torch.empty(p.shape, device="cuda")) for p in model.parameters()}
        found = merged_weights(copy.deepcopy(model, on_gpu | {id(buffer): buffer for buffer in model.buffers()}))
    assert found is not None
    assert {weight.device.type for weight in found.values()} == {"cpu"}
    assert found["lm_head.weight"] is found["model.embed_tokens.weight"]


def test_adapters_change_nothing_at_first_and_a_model_without_has_nothing_to_merge(tiny: Callable[..., Any]) -> None:
    model, _ = tiny("qwen2")
    assert merged_weights(model) is None
    before = log_probs(model)
    add_adapters(model, LoRAConfig(dropout=0.5), seed=0)
    assert log_probs(model).equal(before)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_adapters_have_gradients_and_learn(tiny: Callable[..., Any], checkpointing: bool) -> None:
    model, _ = tiny("gemma3")
    add_adapters(model, LoRAConfig(rank=4), seed=0)
    before = copy.deepcopy(model.state_dict())
    trainer = Trainer(Policy(model), SETTINGS, 10, ExecutionConfig(gradient_checkpointing=checkpointing))
    for _ in range(2):
        trainer.step(ROWS, SupervisedFineTuning())
    changed = {name for name, weight in model.state_dict().items() if not weight.equal(before[name])}
    adapters = {name for name in before if ".lora_" in name}
    assert changed == adapters
    assert {name for name, p in model.named_parameters() if p.requires_grad} == adapters
    assert len(adapters) == 2 * 7 * model.config.num_hidden_layers
    assert set(trainer.state()["weights"]) == {f"model.{name}" for name in adapters}


def test_dropout_is_on_in_training_and_off_in_scoring_and_sampling(tiny: Callable[..., Any]) -> None:
    model, _ = tiny("llama")
    trainer = trained(model, LoRAConfig(rank=4, dropout=0.5))
    model.train()
    ids = torch.tensor([[5, 6, 7]])
    assert not model(ids).logits.equal(model(ids).logits)
    model.train()
    assert log_probs(model).equal(log_probs(model))
    model.train()
    engine = InProcessEngine(trainer.module.model)
    (drawn,) = engine.generate([(5, 6)], Sampling(1.0, 8, 1), seed=0)
    expected = score(Policy(model), [TokenSequence(drawn.prompt, drawn.response)], 512).log_probs[0]
    torch.testing.assert_close(torch.tensor(drawn.log_probs), expected, atol=1e-5, rtol=0)


def test_a_killed_run_goes_on_as_it_would_have(tiny: Callable[..., Any]) -> None:
    """The base comes from the backbone again; the state holds adapters, their moments and the dropout's generator."""
    model, _ = tiny("llama")
    again = copy.deepcopy(model)
    trainer = trained(model, LoRAConfig(rank=4, dropout=0.3))
    kept = copy.deepcopy(dict(trainer.state()))
    expected = [trainer.step(ROWS, SupervisedFineTuning())["train/loss"] for _ in range(2)]
    resumed = trained(again, LoRAConfig(rank=4, dropout=0.3), steps=0)
    torch.rand(7)
    resumed.load_state(kept)
    assert [resumed.step(ROWS, SupervisedFineTuning())["train/loss"] for _ in range(2)] == expected
    assert log_probs(again).equal(log_probs(model))


def test_the_same_seed_gives_the_same_adapters(tiny: Callable[..., Any]) -> None:
    found = []
    for seed in (0, 0, 1):
        model, _ = tiny("llama")
        torch.rand(seed + 3)
        add_adapters(model, LoRAConfig(rank=2), seed)
        found.append(model.model.layers[1].mlp.up_proj.lora_A["default"].weight)
    assert found[0].equal(found[1])
    assert not found[0].equal(found[2])


def test_frozen_scorers_are_the_sft_model_whatever_the_adapters_learn(tiny: Callable[..., Any], tmp_path: Path) -> None:
    """Switching adapters off would score with the base model."""
    model, tokenizer = tiny("mistral")
    base = log_probs(model)
    trained(model, LoRAConfig(rank=4))
    save(model, tokenizer, tmp_path / "0.5")
    ref = log_probs(model)
    trainer = Trainer(Policy(model), SETTINGS, 10, ExecutionConfig())
    trainer.step(ROWS, SupervisedFineTuning())
    save(model, tokenizer, tmp_path / "1.0")
    sft = log_probs(model)
    actor = load_model(tmp_path / "1.0")
    reward = TokenReward(
        Policy(load_model(tmp_path / "1.0")), Policy(load_model(tmp_path / "0.5")), "baseline_relative"
    )
    trained(actor, LoRAConfig(rank=4))
    torch.testing.assert_close(reward(ROWS).rewards, sft - ref, atol=2e-5, rtol=0)
    assert (sft - base).abs().max() > 0.1
    assert (sft - log_probs(actor)).abs().max() > 0.01


def test_a_critic_of_an_adapted_policy_trains_adapters_and_its_head(tiny: Callable[..., Any]) -> None:
    model, _ = tiny("llama")
    add_adapters(model, LoRAConfig(rank=2), seed=0)
    learning = {name for name, p in Critic(Policy(model)).named_parameters() if p.requires_grad}
    assert {"head.weight", "head.bias"} < learning
    assert all(".lora_" in name for name in learning - {"head.weight", "head.bias"})


def test_targets_that_the_model_does_not_have(tiny: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match=r"lora\.targets: .*c_attn.* not found"):
        add_adapters(tiny("llama")[0], LoRAConfig(targets=("c_attn",)), seed=0)


def test_without_peft_the_extra_is_named(tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match=r"dense-path\[lora\]"):
        add_adapters(tiny("llama")[0], LoRAConfig(), seed=0)


def test_a_moving_average_of_adapters_is_refused() -> None:
    with pytest.raises(ValidationError, match="set only one"):
        SFTConfig(lora=LoRAConfig(), ema_decay=0.9)


def test_under_bfloat16_the_rest_is_held_rounded_and_learns_the_same(tiny: Callable[..., Any], tmp_path: Path) -> None:
    model, tokenizer = tiny("gemma3")
    add_adapters(model, LoRAConfig(rank=2, targets=("q_proj", "up_proj")), seed=0)
    found = []
    for rounded in (False, True):
        policy = Policy(copy.deepcopy(model), activations=torch.bfloat16)
        if rounded:
            policy.round_frozen()
        trainer = Trainer(policy, SETTINGS, 10, ExecutionConfig())
        losses = [trainer.step(ROWS, SupervisedFineTuning())["train/loss"] for _ in range(3)]
        found.append((losses, trainer.state()["weights"]))
    (losses, learned), (same, held) = found
    assert same == losses
    assert all(weight.equal(held[name]) for name, weight in learned.items())
    types = {(p.dtype, p.requires_grad) for name, p in policy.model.named_parameters() if "_proj" in name}
    assert types == {(torch.bfloat16, False), (torch.float32, True)}
    save(policy.model, tokenizer, tmp_path)
    assert {weight.dtype for weight in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}
    again = Policy(load_model(tmp_path), activations=torch.bfloat16)
    ours, theirs = (score(each, ROWS, 512).log_probs for each in (policy, again))
    torch.testing.assert_close(theirs, ours, atol=0.05, rtol=0)
