"""The four backbones as they are published: from the files on the hub to a trained checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    CohereConfig,
    CohereForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from dpr_core.algorithms.sft import SupervisedFineTuning
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.model import Family, PretrainedBackboneConfig
from dpr_core.config.training import OptimizerConfig
from dpr_core.data.encoding import TokenSequence, decode_response, encode_prompt, encode_response, end_token
from dpr_core.errors import DensePathError, UsageError
from dpr_core.models.checkpoints import load_backbone, load_model, save
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score
from dpr_core.rollouts.engine import Sampling
from dpr_core.rollouts.in_process import InProcessEngine
from dpr_core.training.trainer import Trainer
from tests.published import publish

FAMILIES: tuple[Family, ...] = get_args(Family)
CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "mistral": "MistralForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}
PROMPT = "### User:\nStart at 4, add 3.\n\n### Assistant:\n"
ANSWERS = ("The answer is 7.", "é 漢字 😀", "")


def sequences(tokenizer: Any) -> list[TokenSequence]:
    return [TokenSequence(encode_prompt(tokenizer, PROMPT), encode_response(tokenizer, text)) for text in ANSWERS]


def log_probs(model: PreTrainedModel, rows: list[TokenSequence]) -> torch.Tensor:
    return score(Policy(model), rows, 512).log_probs


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_from_the_published_files_over_a_training_step_to_a_plain_checkpoint(
    family: Family, shards: int, tmp_path: Path
) -> None:
    published = publish(family, tmp_path / "published", shards=shards)
    model, tokenizer = load_backbone(PretrainedBackboneConfig(name=str(published)))
    assert type(model).__name__ == CLASSES[family]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    rows = sequences(tokenizer)
    before = log_probs(model, rows)
    settings = OptimizerConfig(learning_rate=1e-2, batch_size=3, warmup_ratio=0)
    Trainer(Policy(model), settings, 1, ExecutionConfig()).step(rows, SupervisedFineTuning())
    after = log_probs(model, rows)
    assert after.sum() > before.sum() + 1

    save(model, tokenizer, tmp_path / "saved")
    again, its_tokenizer = load_backbone(PretrainedBackboneConfig(name=str(tmp_path / "saved")))
    assert log_probs(again, rows).equal(after)
    assert sequences(its_tokenizer) == rows
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert type(plain).__name__ == CLASSES[family]
    assert log_probs(plain, rows).equal(after)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")(PROMPT)["input_ids"] == list(rows[0].prompt)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_stored_weight_is_loaded_as_it_is_stored(family: Family, tmp_path: Path) -> None:
    """Of Gemma-3, every weight of the text model; those of its vision tower have no place in it."""
    published = publish(family, tmp_path / "published")
    model, _ = load_backbone(PretrainedBackboneConfig(name=str(published)))
    loaded = dict(model.named_parameters())
    with safe_open(published / "model.safetensors", framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    text = {name.removeprefix("language_model."): weight for name, weight in stored.items() if "vision" not in name}
    text = {name: weight for name, weight in text.items() if "multi_modal" not in name}
    assert loaded.keys() == text.keys()
    assert all(loaded[name].equal(text[name].float()) for name in text)
    assert (len(stored) > len(text)) == (family == "gemma3")


def test_gemmas_text_model_computes_what_it_computes_within_the_model_that_reads_images(tmp_path: Path) -> None:
    published = publish("gemma3", tmp_path / "published")
    both = AutoModelForCausalLM.from_pretrained(published, dtype=torch.float32).eval()
    assert type(both).__name__ == "Gemma3ForConditionalGeneration"
    text = load_model(published)
    ids = torch.randint(0, 400, (2, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert text(ids).logits.equal(both(ids).logits)
    assert text.get_output_embeddings().weight is text.get_input_embeddings().weight
    save(text, load_backbone(PretrainedBackboneConfig(name=str(published)))[1], tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["Gemma3ForCausalLM"], "gemma3_text")
    assert config["rope_parameters"]["full_attention"]["factor"] == 8.0
    assert "vision_config" not in config


FACTS = {
    # family: BOS, EOS, pad, what the tokenizer puts in front of a response that starts with a word
    "llama": ("<|begin_of_text|>", "<|end_of_text|>", None, "is"),
    "qwen2": (None, "<|endoftext|>", "<|endoftext|>", "is"),
    "mistral": ("<s>", "</s>", None, "▁is"),
    "gemma3": ("<bos>", "<eos>", "<pad>", "is"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokenizer_of_each_family(family: Family, tmp_path: Path) -> None:
    model, tokenizer = load_backbone(PretrainedBackboneConfig(name=str(publish(family, tmp_path / "published"))))
    bos, eos, pad, first = FACTS[family]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (bos, eos, pad)
    prompt, response = encode_prompt(tokenizer, PROMPT), encode_response(tokenizer, "is")
    special = [tokenizer.convert_ids_to_tokens(i) for i in prompt if i in tokenizer.all_special_ids]
    assert special == ([bos] if bos else [])
    assert tokenizer.convert_ids_to_tokens(list(response)) == [first, eos]
    assert decode_response(tokenizer, response) == "is"
    for text in (f"{bos}{eos}<image_soft_token><|im_end|>", "a , b 's", "é 漢字 😀\n\n"):
        assert decode_response(tokenizer, encode_response(tokenizer, text)) == text
        assert end_token(tokenizer) not in encode_response(tokenizer, text)[:-1]
    rows = len(model.get_input_embeddings().weight)
    assert (rows > len(tokenizer)) == (family in ("qwen2", "gemma3"))


def test_with_a_prefix_space_prompt_and_response_are_not_encoded_as_their_concatenation(tmp_path: Path) -> None:
    """Why token ids are kept end to end: Mistral's tokenizer marks the start of every text."""
    _, tokenizer = load_backbone(PretrainedBackboneConfig(name=str(publish("mistral", tmp_path / "published"))))
    split = [*encode_prompt(tokenizer, PROMPT), *encode_response(tokenizer, "The answer")[:-1]]
    assert split != tokenizer(PROMPT + "The answer")["input_ids"]


@pytest.mark.parametrize("family", FAMILIES)
def test_resized_embeddings(family: Family, tmp_path: Path) -> None:
    """Rows that no token has can be drawn, scored and decoded, and are still there afterwards."""
    model, tokenizer = load_backbone(PretrainedBackboneConfig(name=str(publish(family, tmp_path / "published"))))
    rows = len(model.get_input_embeddings().weight) + 37
    model.resize_token_embeddings(rows, mean_resizing=False)
    save(model, tokenizer, tmp_path / "resized")
    again, _ = load_backbone(PretrainedBackboneConfig(name=str(tmp_path / "resized")))
    assert (len(again.get_input_embeddings().weight), again.config.vocab_size) == (rows, rows)
    prompt = encode_prompt(tokenizer, PROMPT)
    unused = TokenSequence(prompt, (rows - 1, end_token(tokenizer)))
    assert log_probs(again, [unused]).equal(log_probs(model, [unused]))
    assert decode_response(tokenizer, unused.response) == ""
    drawn = InProcessEngine(again).generate([prompt] * 8, Sampling(1.0, 20, end_token(tokenizer)), seed=0)
    for each in drawn:
        expected = log_probs(again, [TokenSequence(each.prompt, each.response)])[0]
        torch.testing.assert_close(torch.tensor(each.log_probs), expected, atol=1e-4, rtol=0)


def _other(model: PreTrainedModel, folder: Path) -> Path:
    """A folder with the model of another architecture beside Llama's tokenizer."""
    publish("llama", folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)
    return folder


BERT = BertConfig(
    vocab_size=400,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    initializer_range=1.0,
)
COHERE = CohereConfig(
    vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, logit_scale=0.5
)
T5 = T5Config(vocab_size=400, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: T5ForConditionalGeneration(T5), "Unrecognized configuration class .*T5Config"),
        (lambda: BertLMHeadModel(BERT), "a bert model, whose tokens see those after them"),
        (lambda: CohereForCausalLM(COHERE), "a cohere model does more to its logits than its head"),
    ],
)
def test_another_architecture_is_refused(build: Callable[[], PreTrainedModel], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        load_backbone(PretrainedBackboneConfig(name=str(_other(build(), tmp_path / "other"))))


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    published = publish("llama", tmp_path / "published")
    config = json.loads((published / "config.json").read_text())
    changed = {**config, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    (published / "config.json").write_text(json.dumps(changed))
    with pytest.raises(DensePathError, match=r"missing or of the wrong shape: .*bias"):
        load_backbone(PretrainedBackboneConfig(name=str(published)))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_missing_shard_is_named(family: Family, tmp_path: Path) -> None:
    published = publish(family, tmp_path / "published", shards=3)
    (published / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UsageError, match=r"1 of 3 files .*model-00002-of-00003\.safetensors"):
        load_backbone(PretrainedBackboneConfig(name=str(published)))


def test_a_weight_that_the_index_leaves_out_is_named(tmp_path: Path) -> None:
    published = publish("gemma3", tmp_path / "published", shards=3)
    index = json.loads((published / "model.safetensors.index.json").read_text())
    lost = "language_model.model.layers.1.mlp.up_proj.weight"
    folder = published / index["weight_map"].pop(lost)
    (published / "model.safetensors.index.json").write_text(json.dumps(index))
    with safe_open(folder, framework="pt") as file:
        kept = {name: file.get_tensor(name) for name in file.keys() if name != lost}  # noqa: SIM118
    save_file(kept, folder, metadata={"format": "pt"})
    with pytest.raises(DensePathError, match=r"layers\.1\.mlp\.up_proj"):
        load_backbone(PretrainedBackboneConfig(name=str(published)))


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(tmp_path: Path) -> None:
    published = publish("gemma3", tmp_path / "published")
    model, tokenizer = load_backbone(PretrainedBackboneConfig(name=str(published)))
    model.resize_token_embeddings(len(tokenizer) - 1, mean_resizing=False)
    save(model, tokenizer, tmp_path / "small")
    with pytest.raises(UsageError, match=f"{len(tokenizer)} tokens, but the model only {len(tokenizer) - 1} rows"):
        load_backbone(PretrainedBackboneConfig(name=str(tmp_path / "small")))


@pytest.mark.parametrize("family", FAMILIES)
def test_sequences_longer_than_the_models_positions_are_refused(family: Family, tmp_path: Path) -> None:
    model, _ = load_backbone(PretrainedBackboneConfig(name=str(publish(family, tmp_path / "published"))))
    Policy(model).check_length(1024)
    with pytest.raises(UsageError, match="1025 tokens are more than the model's 1024 positions"):
        Policy(model).check_length(1025)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_setting_decides_on_attention_whatever_the_checkpoint_says(
    family: Family, attention: Literal["sdpa", "eager"], tmp_path: Path
) -> None:
    folder = publish(family, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for section in [config, *(config[name] for name in ("text_config", "vision_config") if name in config)]:
        section["_attn_implementation"] = "flash_attention_2"
    (folder / "config.json").write_text(json.dumps(config))
    model = load_backbone(PretrainedBackboneConfig(name=str(folder), attention=attention))[0]
    assert model.config._attn_implementation == attention
    assert model.get_decoder().config._attn_implementation == attention
