"""A checkpoint whose config.json and weights do not fit each other, or whose weights are no numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from dpr_core.config.model import LabBackboneConfig, PretrainedBackboneConfig
from dpr_core.errors import UsageError
from dpr_core.lab.backbone import untrained
from dpr_core.models.checkpoints import load_backbone, load_mean, load_model, save
from dpr_core.models.lora import add_adapters
from dpr_core.planning.architecture import backbone_architecture
from tests.published import publish

WEIGHT = "model.layers.1.mlp.up_proj.weight"

HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"num_hidden_layers": -1}, r"config\.json: num_hidden_layers is -1, where a whole number from 1"),
    ({"num_hidden_layers": 0}, r"config\.json: num_hidden_layers is 0"),
    ({"num_hidden_layers": 1_000_000}, r"config\.json: num_hidden_layers is 1000000"),
    ({"num_hidden_layers": 9_000}, r"num_hidden_layers is 9000, but its weights hold 4 layers"),
    ({"num_hidden_layers": 4.0}, r"config\.json: num_hidden_layers is 4\.0"),
    ({"num_hidden_layers": True}, r"config\.json: num_hidden_layers is True"),
    ({"num_hidden_layers": None}, r"config\.json: num_hidden_layers is None"),
    ({"num_attention_heads": 0}, r"config\.json: num_attention_heads is 0"),
    ({"num_attention_heads": -2}, r"config\.json: num_attention_heads is -2"),
    ({"num_attention_heads": 3}, r"config\.json cannot be used: .*hidden size \(16\) is not a multiple"),
    ({"num_key_value_heads": 0}, r"config\.json: num_key_value_heads is 0"),
    ({"num_key_value_heads": 5}, r"k_proj\.weight has the shape 16 x 16 in its weights and 40 x 16 by its"),
    ({"hidden_size": "32"}, r"config\.json: hidden_size is '32'"),
    ({"hidden_size": 16.5}, r"config\.json: hidden_size is 16\.5"),
    ({"hidden_size": 10**9}, r"embed_tokens\.weight has the shape .* x 16 in its weights and .* x 1000000000 by"),
    ({"vocab_size": 10**12}, r"config\.json: vocab_size is 1000000000000"),
    ({"vocab_size": 10**20}, r"config\.json: vocab_size is 100000000000000000000"),
    ({"vocab_size": -5}, r"config\.json: vocab_size is -5"),
    ({"vocab_size": 300}, r"embed_tokens\.weight has the shape 320 x 16 in its weights and 300 x 16 by its config"),
    ({"intermediate_size": 0}, r"config\.json: intermediate_size is 0"),
    ({"head_dim": 0}, r"config\.json: head_dim is 0"),
    ({"head_dim": "8"}, r"config\.json: head_dim is '8'"),
    ({"max_position_embeddings": "many"}, r"config\.json: max_position_embeddings is 'many'"),
    ({"max_position_embeddings": 10**15}, r"config\.json: max_position_embeddings is 1000000000000000"),
    ({"rms_norm_eps": "x"}, r"config\.json cannot be used: .*'rms_norm_eps'.* expected float"),
    ({"hidden_act": "nope"}, r"as its config\.json says: KeyError: 'nope'"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": "x"}}, r"as its config\.json says: TypeError"),
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound checkpoint of four layers."""
    config = LabBackboneConfig(width=16, layers=4, heads=2, feed_forward=32)
    save(*untrained(config), tmp_path / "model")
    return tmp_path / "model"


def change(folder: Path, **settings: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def rewrite(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder: Path) -> Any:
    return load_backbone(PretrainedBackboneConfig(name=str(folder)))[0]


def plan(folder: Path) -> Any:
    return backbone_architecture(PretrainedBackboneConfig(name=str(folder)))


@pytest.mark.parametrize("use", [load, plan])
@pytest.mark.parametrize(("settings", "words"), HOSTILE, ids=[json.dumps(settings) for settings, _ in HOSTILE])
def test_a_hostile_config_is_refused_in_a_sentence(
    folder: Path, settings: dict[str, Any], words: str, use: Callable[[Path], object]
) -> None:
    """A million layers would take minutes to build, and so would a head over 10^12 tokens."""
    change(folder, **settings)
    with pytest.raises(UsageError, match=words) as refused:
        use(folder)
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("use", [load, plan])
def test_the_part_of_a_multimodal_config_is_named(tmp_path: Path, use: Callable[[Path], object]) -> None:
    folder = publish("gemma3", tmp_path / "gemma")
    text = json.loads((folder / "config.json").read_text())["text_config"]
    change(folder, text_config={**text, "hidden_size": "16"})
    with pytest.raises(UsageError, match=r"config\.json: text_config\.hidden_size is '16'"):
        use(folder)


def test_fewer_layers_than_the_weights_have_are_refused_by_name(folder: Path) -> None:
    """They would load as a model of two layers."""
    change(folder, num_hidden_layers=2)
    with pytest.raises(UsageError, match=r"no place for: model\.layers\.2\.\S+, .* and 15 more"):
        load(folder)


def test_a_surplus_weight_is_refused_by_name(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.update({"v_head.summary.weight": torch.ones(1, 16)}))
    with pytest.raises(UsageError, match=r"no place for: v_head\.summary\.weight;"):
        load_model(folder)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("use", [load, load_model, lambda folder: load_mean([folder])])
def test_weights_that_are_not_finite_are_refused_as_that(
    folder: Path, value: str, use: Callable[[Path], object]
) -> None:
    rewrite(folder, lambda weights: weights[WEIGHT][3].fill_(float(value)))
    with pytest.raises(UsageError, match=rf"not finite \(NaN or infinite\): {WEIGHT}$"):
        use(folder)


def test_weights_beyond_float32_are_not_finite_either(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.update({WEIGHT: torch.full((32, 16), 1e300, dtype=torch.float64)}))
    with pytest.raises(UsageError, match="not finite"):
        load_model(folder)


def test_a_network_that_computes_nothing_finite_is_not_called_no_language_model(folder: Path) -> None:
    rewrite(folder, lambda weights: weights["model.norm.weight"].fill_(3e38))
    with pytest.raises(UsageError, match="weights are finite, but not what it computes"):
        load(folder)


def test_a_weight_in_two_shards_is_refused(folder: Path) -> None:
    """One of the two would win without a word."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "a.safetensors", metadata={"format": "pt"})
    save_file({WEIGHT: weights[WEIGHT] + 1}, folder / "b.safetensors", metadata={"format": "pt"})
    shards = dict.fromkeys(weights, "a.safetensors") | {WEIGHT: "b.safetensors"}
    index = {"metadata": {}, "weight_map": shards}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match=rf"another file of this checkpoint has {WEIGHT} too"):
        load(folder)


def test_rotary_buffers_of_older_checkpoints_still_load(folder: Path) -> None:
    before = load(folder).state_dict()
    extra = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(4)}
    rewrite(folder, lambda weights: weights.update(extra))
    assert all(weight.equal(before[name]) for name, weight in load(folder).state_dict().items())


def test_a_head_stored_beside_the_embedding_that_it_is_tied_to_still_loads(
    tiny: Callable[..., Any], tmp_path: Path
) -> None:
    model, tokenizer = tiny("llama", tie_word_embeddings=True)
    save(model, tokenizer, tmp_path / "tied")
    embedding = "model.embed_tokens.weight"
    rewrite(tmp_path / "tied", lambda weights: weights.update({"lm_head.weight": weights[embedding].clone()}))
    loaded = load(tmp_path / "tied")
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight


def test_causal_masks_stored_as_buffers_still_load(tiny: Callable[..., Any], tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=320, n_embd=16, n_layer=2, n_head=2, n_positions=64)
    save(GPT2LMHeadModel(config), tiny("llama")[1], tmp_path / "gpt2")
    masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 64, 64) for i in range(2)}
    rewrite(tmp_path / "gpt2", lambda weights: weights.update(masks))
    assert load(tmp_path / "gpt2").config.n_layer == 2


def test_a_checkpoint_of_merged_adapters_still_loads(tiny: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from dpr_core.config.training import LoRAConfig

    model, tokenizer = tiny("llama")
    add_adapters(model, LoRAConfig(rank=2), 0)
    save(model, tokenizer, tmp_path / "merged")
    assert load_model(tmp_path / "merged").config.num_hidden_layers == 2


@pytest.mark.parametrize("use", [load, plan])
def test_a_multimodal_model_still_loads(tmp_path: Path, use: Callable[[Path], object]) -> None:
    assert use(publish("gemma3", tmp_path / "gemma"))
