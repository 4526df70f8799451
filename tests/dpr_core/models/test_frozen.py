"""Frozen weights: rounded where they are only ever used rounded."""

import copy
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch

from dpr_core.config.model import Family
from dpr_core.config.training import LoRAConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.models import sharding
from dpr_core.models.lora import add_adapters
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score
from dpr_core.models.sharding import unsharded_copy
from dpr_core.rollouts import kv_cache
from dpr_core.rollouts.engine import Sampling
from dpr_core.rollouts.in_process import InProcessEngine

TinyModel = Callable[..., Any]


@pytest.mark.parametrize("family", get_args(Family))
def test_a_frozen_policy_in_bfloat16_scores_the_same_bits_from_less_memory(family: Family, tiny: TinyModel) -> None:
    model, _ = tiny(family)
    policy = Policy(model, activations=torch.bfloat16)
    rows = [TokenSequence((5, 6, 7), (8, 9, 10, 11, 1)), TokenSequence((7, 30), (40, 50, 1))]
    before = score(policy, rows, 512, entropy=True)
    engine = InProcessEngine(model, activations=torch.bfloat16)
    drawn = engine.generate([(5, 6)] * 4, Sampling(1.0, 12, 1), seed=0)
    memory = sum(weight.nbytes for weight in model.parameters())
    assert policy.freeze() is policy
    assert all(a.equal(b) for a, b in zip(score(policy, rows, 512, entropy=True), before, strict=True))
    assert engine.generate([(5, 6)] * 4, Sampling(1.0, 12, 1), seed=0) == drawn
    blocks = sum(weight.nbytes for name, weight in model.named_parameters() if weight.dtype == torch.bfloat16)
    assert memory - sum(weight.nbytes for weight in model.parameters()) == blocks > 0
    kept = {name for name, weight in model.named_parameters() if weight.dtype == torch.float32}
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= kept
    assert model.get_output_embeddings().weight.dtype == torch.float32
    assert not any(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("family", get_args(Family))
def test_what_learns_is_drawn_with_rounded_once_for_all_tokens_to_the_same_bits(
    family: Family, adapted: bool, tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autocast would read every weight in float32, write it and read it again, for each token."""
    model, _ = tiny(family)
    if adapted:
        add_adapters(model, LoRAConfig(rank=2), seed=0)
        for name, weight in model.named_parameters():
            if ".lora_B" in name:
                torch.nn.init.normal_(weight, std=0.3)
    prompts, sampling = [(5, 6), (7, 8, 9), (5,)] * 4, Sampling(1.0, 12, 1)
    drawn = InProcessEngine(model, 4, torch.bfloat16).generate(prompts, sampling, seed=0)
    assert all(weight.dtype == torch.float32 for weight in model.parameters())
    monkeypatch.setattr(sharding, "_rounded", lambda model, *_: model)
    monkeypatch.setattr(kv_cache, "_rounded", lambda keys, _: keys)
    assert InProcessEngine(model, 4, torch.bfloat16).generate(prompts, sampling, seed=0) == drawn


def test_a_copy_for_drawing_shares_what_is_not_rounded(tiny: TinyModel) -> None:
    model, _ = tiny("llama")
    twin = unsharded_copy(model, activations=torch.bfloat16)
    weights, rounded = dict(model.named_parameters()), dict(twin.named_parameters())
    held = {name for name, weight in rounded.items() if weight.dtype == torch.bfloat16}
    assert held == {name for name, weight in weights.items() if "_proj" in name}
    assert all(rounded[name] is weights[name] for name in weights.keys() - held)
    assert all(rounded[name].equal(weights[name].bfloat16()) for name in held)
    assert unsharded_copy(model) is model
    assert unsharded_copy(twin, activations=torch.bfloat16) is twin


def test_a_frozen_policy_in_float32_is_left_as_it_is(tiny: TinyModel) -> None:
    model, _ = tiny("llama")
    before = copy.deepcopy(model.state_dict())
    Policy(model).freeze()
    assert all(weight.dtype == torch.float32 and weight.equal(before[n]) for n, weight in model.state_dict().items())
