import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaForCausalLM,
)

from dpr_core.config.model import Family, PretrainedBackboneConfig
from dpr_core.errors import DensePathError, UsageError
from dpr_core.hashing import hash_folder
from dpr_core.models.checkpoints import extrapolate, load_backbone, load_mean, load_model, load_tokenizer, save

FAMILIES: tuple[Family, ...] = get_args(Family)
IDS = torch.tensor([[1, 30, 31, 40, 41]])


def _digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def _rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_loads_with_plain_transformers(tiny: Callable[..., Any], family: Family, tmp_path: Path) -> None:
    model, tokenizer = tiny(family)
    save(model, tokenizer, tmp_path / "checkpoint")
    for loaded in (AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint"), load_model(tmp_path / "checkpoint")):
        assert type(loaded) is type(model)
        assert loaded(IDS).logits.equal(model(IDS).logits)
        assert not loaded.training
    for again in (AutoTokenizer.from_pretrained(tmp_path / "checkpoint"), load_tokenizer(tmp_path / "checkpoint")):
        for text in ("Start at 4, add 3.\n", "é 😀", "<s></s><eos><|endoftext|>"):
            assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
            assert again.decode(again(text)["input_ids"]) == tokenizer.decode(tokenizer(text)["input_ids"])
        assert again.eos_token == tokenizer.eos_token


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_model_gives_the_same_bytes_anywhere_and_after_a_round_trip(
    tiny: Callable[..., Any], family: Family, tmp_path: Path
) -> None:
    model, tokenizer = tiny(family)
    save(model, tokenizer, tmp_path / "a")
    save(model, tokenizer, tmp_path / "elsewhere" / "b")
    save(load_model(tmp_path / "a"), load_tokenizer(tmp_path / "a"), tmp_path / "c")
    save(load_model(tmp_path / "elsewhere" / "b"), load_tokenizer(tmp_path / "elsewhere" / "b"), tmp_path / "d")
    assert _digests(tmp_path / "a") == _digests(tmp_path / "elsewhere" / "b")
    assert _digests(tmp_path / "c") == _digests(tmp_path / "d")
    assert _digests(tmp_path / "a")["model.safetensors"] == _digests(tmp_path / "c")["model.safetensors"]


def test_weights_are_loaded_in_float32_whatever_type_they_are_stored_in(
    tiny: Callable[..., Any], tmp_path: Path
) -> None:
    model, tokenizer = tiny("llama")
    save(model.to(torch.bfloat16), tokenizer, tmp_path)
    loaded, _ = load_backbone(PretrainedBackboneConfig(name=str(tmp_path)))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_a_backbone_that_changed_after_its_hash_was_noted_is_refused(tiny: Callable[..., Any], tmp_path: Path) -> None:
    save(*tiny("llama"), tmp_path)
    backbone = PretrainedBackboneConfig(name=str(tmp_path), content=hash_folder(tmp_path))
    load_backbone(backbone)
    save(*tiny("llama", seed=1), tmp_path)
    with pytest.raises(DensePathError, match="changed after its hash was noted"):
        load_backbone(backbone)


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_folder_that_is_not_there(load: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        load(tmp_path / "nowhere")


def test_a_checkpoint_with_a_missing_weight_is_refused(tiny: Callable[..., Any], tmp_path: Path) -> None:
    """transformers fills the gap with random numbers and a warning."""
    model, tokenizer = tiny("llama")
    save(model, tokenizer, tmp_path)
    _rewrite(tmp_path, lambda weights: weights.pop("model.layers.0.self_attn.q_proj.weight"))
    with pytest.raises(DensePathError, match="q_proj"):
        load_model(tmp_path)


def test_a_checkpoint_with_a_weight_of_the_wrong_shape_is_refused(tiny: Callable[..., Any], tmp_path: Path) -> None:
    model, tokenizer = tiny("llama")
    save(model, tokenizer, tmp_path)
    _rewrite(tmp_path, lambda weights: weights.update({"model.norm.weight": torch.ones(3)}))
    with pytest.raises(DensePathError):
        load_model(tmp_path)


def test_a_truncated_weight_file_is_refused(tiny: Callable[..., Any], tmp_path: Path) -> None:
    model, tokenizer = tiny("llama")
    save(model, tokenizer, tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(DensePathError):
        load_model(tmp_path)


def test_a_tokenizer_without_an_end_token_is_refused(tiny: Callable[..., Any], tmp_path: Path) -> None:
    _, tokenizer = tiny("llama")
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="end-of-sequence"):
        load_tokenizer(tmp_path)


def test_more_tokens_than_rows_are_refused(tiny: Callable[..., Any], tmp_path: Path) -> None:
    model, tokenizer = tiny("llama", vocab_size=200)
    save(model, tokenizer, tmp_path)
    with pytest.raises(UsageError, match="200 rows"):
        load_backbone(PretrainedBackboneConfig(name=str(tmp_path)))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_extrapolation_goes_k_times_further_than_training_went(
    tiny: Callable[..., Any], family: Family, tied: bool, tmp_path: Path
) -> None:
    model, tokenizer = tiny(family, tie_word_embeddings=tied)
    reference, _ = tiny(family, seed=1, tie_word_embeddings=tied)
    save(reference, tokenizer, tmp_path)
    before = {name: p.clone() for name, p in model.named_parameters()}
    behind = dict(reference.named_parameters())
    extrapolate(model, load_model(tmp_path), 0.25)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, 1.25 * before[name] - 0.25 * behind[name], atol=1e-6, rtol=0)
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert (head.data_ptr() == embeddings.data_ptr()) == tied


def test_extrapolation_by_hand(tiny: Callable[..., Any], tmp_path: Path) -> None:
    """From 2 over 5, once as far again: 8."""
    model, tokenizer = tiny("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(2.0)
        save(model, tokenizer, tmp_path)
        for parameter in model.parameters():
            parameter.fill_(5.0)
    extrapolate(model, load_model(tmp_path), 1.0)
    assert all(p.eq(8.0).all() for p in model.parameters())


def test_extrapolation_from_itself_changes_nothing(tiny: Callable[..., Any], tmp_path: Path) -> None:
    model, tokenizer = tiny("gemma3")
    save(model, tokenizer, tmp_path)
    before = model(IDS).logits
    extrapolate(model, load_model(tmp_path), 3.0)
    assert model(IDS).logits.equal(before)


def test_extrapolation_reads_every_shard(tiny: Callable[..., Any], tmp_path: Path) -> None:
    model, _ = tiny("llama")
    reference, _ = tiny("llama", seed=1)
    reference.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    expected = {n: 2 * p.clone() - dict(reference.named_parameters())[n] for n, p in model.named_parameters()}
    extrapolate(model, load_model(tmp_path), 1.0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], atol=1e-6, rtol=0)


def test_extrapolation_from_a_reference_with_a_missing_weight_is_refused(
    tiny: Callable[..., Any], tmp_path: Path
) -> None:
    model, tokenizer = tiny("llama")
    save(model, tokenizer, tmp_path)
    _rewrite(tmp_path, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(DensePathError, match="up_proj"):
        extrapolate(model, load_model(tmp_path), 1.0)


def test_extrapolation_from_another_architecture_is_refused(tiny: Callable[..., Any], tmp_path: Path) -> None:
    model, tokenizer = tiny("llama")
    deeper = LlamaForCausalLM(type(model.config)(**{**model.config.to_dict(), "num_hidden_layers": 3}))
    save(deeper, tokenizer, tmp_path)
    with pytest.raises(DensePathError, match=r"layers\.2"):
        extrapolate(model, load_model(tmp_path), 1.0)


def test_extrapolation_of_a_checkpoint_whose_stored_names_differ(tiny: Callable[..., Any], tmp_path: Path) -> None:
    """Gemma-3-4B loads as a text-and-image class, which stores its weights under other names than it uses."""
    _, tokenizer = tiny("gemma3")
    text = {
        "vocab_size": 448, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256,
    }  # fmt: skip
    vision = {
        "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1,
        "image_size": 16, "patch_size": 4,
    }  # fmt: skip
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=400)
    save(Gemma3ForConditionalGeneration(config), tokenizer, tmp_path)
    model = load_model(tmp_path)
    before = model(IDS).logits
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    extrapolate(model, load_model(tmp_path), -1.0)
    torch.testing.assert_close(model(IDS).logits, before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tied", [False, True])
def test_the_mean_of_checkpoints(tiny: Callable[..., Any], tied: bool, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("0.25", "0.5", "0.75")]
    models = []
    for seed, folder in enumerate(folders):
        model, tokenizer = tiny("llama", seed=seed, tie_word_embeddings=tied)
        save(model, tokenizer, folder)
        models.append(dict(model.named_parameters()))
    mean = load_mean(folders)
    assert not mean.training
    for name, parameter in mean.named_parameters():
        expected = torch.stack([weights[name].double() for weights in models]).mean(0)
        torch.testing.assert_close(parameter.double(), expected, atol=1e-6, rtol=0)
    for again in ([*reversed(folders)], [folders[1], folders[2], folders[0]]):
        assert all(p.equal(q) for p, q in zip(load_mean(again).parameters(), mean.parameters(), strict=True))


def test_the_mean_of_one_checkpoint_is_that_checkpoint(tiny: Callable[..., Any], tmp_path: Path) -> None:
    model, tokenizer = tiny("gemma3")
    save(model, tokenizer, tmp_path)
    assert load_mean([tmp_path])(IDS).logits.equal(model(IDS).logits)


def test_checkpoints_of_different_models_have_no_mean(tiny: Callable[..., Any], tmp_path: Path) -> None:
    model, tokenizer = tiny("llama")
    deeper = LlamaForCausalLM(type(model.config)(**{**model.config.to_dict(), "num_hidden_layers": 3}))
    save(model, tokenizer, tmp_path / "a")
    save(deeper, tokenizer, tmp_path / "b")
    with pytest.raises(DensePathError, match=r"layers\.2"):
        load_mean([tmp_path / "a", tmp_path / "b"])
