"""Frozen weights: rounded where they are only ever used rounded."""

import copy
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch

from dpr_core.config.model import Family
from dpr_core.data.encoding import TokenSequence
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score
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


def test_a_frozen_policy_in_float32_is_left_as_it_is(tiny: TinyModel) -> None:
    model, _ = tiny("llama")
    before = copy.deepcopy(model.state_dict())
    Policy(model).freeze()
    assert all(weight.dtype == torch.float32 and weight.equal(before[n]) for n, weight in model.state_dict().items())
