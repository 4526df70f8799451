"""Prepacked weights: the same logits within rounding, from a copy that shares everything else."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from dpr_core.config.model import Family
from dpr_core.config.training import LoRAConfig
from dpr_core.models import prepacked
from dpr_core.models.lora import add_adapters
from dpr_core.models.policy import autocast
from dpr_core.models.prepacked import PrepackedLinear, drawing_copy
from dpr_core.rollouts.engine import Sampling
from dpr_core.rollouts.in_process import InProcessEngine

TinyModel = Callable[..., Any]
IDS = torch.tensor([[5, 6, 7, 30, 40, 50, 1]])


@pytest.fixture(autouse=True)
def _small_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacked, "LEAST", 1)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("family", get_args(Family))
def test_its_logits_are_those_of_the_model(family: Family, adapted: bool, tied: bool, tiny: TinyModel) -> None:
    model, _ = tiny(family, tie_word_embeddings=tied)
    if adapted:
        add_adapters(model, LoRAConfig(rank=2), seed=0)
        for name, weight in model.named_parameters():
            if ".lora_B" in name:
                torch.nn.init.normal_(weight, std=0.3)
    for dtype, most in ((torch.float32, 5e-5), (torch.bfloat16, 0.1)):
        twin = drawing_copy(model, dtype)
        assert isinstance(twin.get_output_embeddings(), PrepackedLinear)
        with torch.no_grad(), autocast(dtype, model.device):
            expected, found = (each(IDS, use_cache=False).logits.float() for each in (model, twin))
        assert float((found - expected).abs().max()) <= most * float(expected.std())


def test_the_model_stays_as_it_is_and_shares_what_is_not_prepacked(tiny: TinyModel) -> None:
    model, _ = tiny("qwen2", tie_word_embeddings=True)
    before = {name: (id(weight), weight.clone()) for name, weight in model.named_parameters()}
    twin = drawing_copy(model, torch.bfloat16)
    assert {name: id(weight) for name, weight in model.named_parameters()} == {n: at for n, (at, _) in before.items()}
    assert all(weight.equal(before[name][1]) and weight.requires_grad for name, weight in model.named_parameters())
    own = dict(model.named_parameters())
    shared = dict(twin.named_parameters())
    assert all(weight is own[name] for name, weight in shared.items())
    assert set(own) - set(shared) == {name for name in own if "_proj" in name}
    packed = {name: layer for name, layer in twin.named_modules() if isinstance(layer, PrepackedLinear)}
    assert packed["lm_head"].weight.dtype == torch.float32
    if prepacked._can_prepack(torch.bfloat16):
        assert {layer.weight.dtype for name, layer in packed.items() if name != "lm_head"} == {torch.bfloat16}


def test_a_head_that_is_held_in_bfloat16_still_gives_float32(tiny: TinyModel) -> None:
    model = tiny("llama")[0].bfloat16()
    assert not isinstance(drawing_copy(model, torch.bfloat16).get_output_embeddings(), PrepackedLinear)


@pytest.mark.slow
def test_a_processor_without_bfloat16_draws(tmp_path: Path) -> None:
    """oneDNN refuses to prepack bfloat16 there. It reads what it may use once, when it is loaded."""
    script = tmp_path / "draw.py"
    script.write_text(
        "import torch\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "from dpr_core.rollouts.engine import Sampling\n"
        "from dpr_core.rollouts.in_process import InProcessEngine\n"
        "shape = dict(vocab_size=512, hidden_size=256, intermediate_size=256, num_hidden_layers=1,\n"
        "             num_attention_heads=4, num_key_value_heads=4)\n"
        "engine = InProcessEngine(LlamaForCausalLM(LlamaConfig(**shape)), 4, torch.bfloat16)\n"
        "print(len(engine.generate([(1, 2, 3)], Sampling(1.0, 4, -1), seed=0)[0].response))\n"
    )
    around = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, str(script)], env=around, capture_output=True, text=True, timeout=120)
    assert done.stdout == "4\n", done.stderr[-2000:]


def test_without_onednn_the_model_itself_draws_the_same(tiny: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny("llama")
    prompts, sampling = [(5, 6), (7, 8, 9)], Sampling(1.0, 12, 1)
    drawn = InProcessEngine(model).generate(prompts, sampling, seed=0)
    monkeypatch.setattr(prepacked, "_can_prepack", lambda dtype: False)
    assert drawing_copy(model, torch.float32) is model
    plain = InProcessEngine(model).generate(prompts, sampling, seed=0)
    assert [c.response for c in plain] == [c.response for c in drawn]
    for ours, theirs in zip(plain, drawn, strict=True):
        assert ours.log_probs == pytest.approx(theirs.log_probs, abs=1e-5)


def test_small_layers_are_left_to_the_model(tiny: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacked, "LEAST", 2**16)
    model, _ = tiny("llama")
    assert drawing_copy(model, torch.float32) is model
