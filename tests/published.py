"""Tiny checkpoints in the layout in which the four backbones are published: their files, names and special tokens.

Nothing here is made by saving one of the project's own models. The files are written one by one, in the form in which
older releases of transformers wrote them, as those on the hub are.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from dpr_core.config.model import Family

WORDS = ("the", "answer", "is", "add", "Start", "User", "Assistant")

SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"
SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0",
}
VISION = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 16,
    "patch_size": 4,
    "model_type": "siglip_vision_model",
}


def publish(family: Family, folder: Path, *, shards: int = 1, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Write a checkpoint of random weights into a folder that is not there yet."""
    folder.mkdir(parents=True)
    tokenizer, settings, more_tokens = _TOKENIZERS[family]()
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(folder / "tokenizer_config.json", {**settings, "model_max_length": 131072, **_added(tokenizer)})
    # As in Qwen and Gemma, there are more rows than tokens.
    rows = tokenizer.get_vocab_size() + more_tokens
    config, generation = _CONFIGS[family](rows, tokenizer)
    _write(folder / "config.json", config)
    _write(folder / "generation_config.json", {**generation, "transformers_version": "4.43.0"})
    weights = {name: weight.to(dtype) for name, weight in _weights(family, config)}
    _save(weights, folder, shards)
    return folder


def _save(weights: Mapping[str, Tensor], folder: Path, shards: int) -> None:
    if shards == 1:
        save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(weights)
    files = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        part = {name: weights[name] for name in names if files[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    size = sum(weight.nbytes for weight in weights.values())
    _write(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": files})


def _weights(family: Family, config: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Far from uniform, under the names that the files on the hub have."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in _empty(family, config).named_parameters():
        scale, middle = (0.3, 0.0) if parameter.dim() > 1 else (0.1, 0.0 if family == "gemma3" else 1.0)
        yield _published_name(name), middle + scale * torch.randn(parameter.shape, generator=generator)


def _published_name(name: str) -> str:
    if "language_model" in name:
        return name.replace("model.language_model", "language_model.model")
    for part in ("vision_tower", "multi_modal_projector"):
        if part in name:
            return (
                name.removeprefix("model.")
                .replace("vision_tower.", "vision_tower.vision_model.")
                .replace("vision_model.vision_model.", "vision_model.")
            )
    return name


def _empty(family: Family, config: dict[str, Any]) -> PreTrainedModel:
    kinds: dict[Family, tuple[Any, Any]] = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "mistral": (MistralConfig, MistralForCausalLM),
        "gemma3": (Gemma3Config, Gemma3ForConditionalGeneration),
    }
    config_class, model_class = kinds[family]
    model: PreTrainedModel = model_class(config_class(**config))
    return model


def _llama() -> tuple[Tokenizer, dict[str, Any], int]:
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|finetune_right_pad_id|>"]
    tokenizer = _byte_level(special, ignore_merges=True)
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(add_prefix_space=True, trim_offsets=False), _bos(tokenizer, special[0])]
    )
    names = {"bos_token": special[0], "eos_token": special[1], "tokenizer_class": "PreTrainedTokenizerFast"}
    return tokenizer, {**names, "clean_up_tokenization_spaces": True}, 0


def _qwen2() -> tuple[Tokenizer, dict[str, Any], int]:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = _byte_level(special, ignore_merges=False)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False)
    names = {"bos_token": None, "eos_token": special[0], "pad_token": special[0], "unk_token": None}
    more = {"add_bos_token": False, "add_prefix_space": False, "tokenizer_class": "Qwen2Tokenizer"}
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    return tokenizer, {**names, **more, "errors": "replace", "chat_template": template}, 21


def _mistral() -> tuple[Tokenizer, dict[str, Any], int]:
    tokenizer = _sentencepiece(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = _bos(tokenizer, "<s>")
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None}
    more = {"add_bos_token": True, "add_eos_token": False, "legacy": False, "tokenizer_class": "LlamaTokenizer"}
    return tokenizer, {**names, **more, "sp_model_kwargs": {}, "use_default_system_prompt": False}, 0


def _gemma3() -> tuple[Tokenizer, dict[str, Any], int]:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokenizer = _sentencepiece(special, last=["<start_of_image>", "<end_of_image>", "<image_soft_token>"])
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = _bos(tokenizer, "<bos>")
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    images = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    more = {"add_bos_token": True, "add_eos_token": False, "tokenizer_class": "GemmaTokenizer"}
    extra = {"extra_special_tokens": images, "processor_class": "Gemma3Processor"}
    return tokenizer, {**names, **more, **images, **extra, "spaces_between_special_tokens": False}, 63


_TOKENIZERS = {"llama": _llama, "qwen2": _qwen2, "mistral": _mistral, "gemma3": _gemma3}


def _byte_level(special: list[str], *, ignore_merges: bool) -> Tokenizer:
    vocabulary, merges = _vocabulary(sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġ")
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def _sentencepiece(special: list[str], last: list[str] | None = None) -> Tokenizer:
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *map(chr, range(0x21, 0x7F)), "▁"]
    vocabulary, merges = _vocabulary(pieces, "▁")
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    added = [AddedToken(token, special=True, normalized=False) for token in [*special, *(last or [])]]
    tokenizer.add_special_tokens(added)
    return tokenizer


def _vocabulary(pieces: list[str], space: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Merges that build each word from its left end."""
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges: list[tuple[str, str]] = []
    for word in (form for plain in WORDS for form in (space + plain, plain)):
        for end in range(1, len(word)):
            if (word[:end], word[end]) not in merges:
                merges.append((word[:end], word[end]))
                vocabulary.setdefault(word[: end + 1], len(vocabulary))
    return vocabulary, merges


def _bos(tokenizer: Tokenizer, bos: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )


def _added(tokenizer: Tokenizer) -> dict[str, Any]:
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    added = tokenizer.get_added_tokens_decoder()
    return {"added_tokens_decoder": {str(i): {flag: getattr(t, flag) for flag in flags} for i, t in added.items()}}


def _llama_config(rows: int, tokenizer: Tokenizer) -> tuple[dict[str, Any], dict[str, Any]]:
    rope = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3"}
    ends = _ids(tokenizer, bos_token_id="<|begin_of_text|>", eos_token_id="<|end_of_text|>")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": rows,
        **SHAPE,
        **ends,
        "max_position_embeddings": 1024,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "mlp_bias": False,
        "rope_scaling": {**rope, "original_max_position_embeddings": 128},
        "tie_word_embeddings": False,
    }
    return config, {"_from_model_config": True, **ends, "do_sample": True, "temperature": 0.6, "top_p": 0.9}


def _qwen2_config(rows: int, tokenizer: Tokenizer) -> tuple[dict[str, Any], dict[str, Any]]:
    ends = _ids(tokenizer, bos_token_id="<|endoftext|>", eos_token_id="<|endoftext|>")
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": rows,
        **SHAPE,
        **ends,
        "max_position_embeddings": 1024,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "use_mrope": False,
        "sliding_window": 1024,
        "use_sliding_window": False,
        "max_window_layers": 2,
        "tie_word_embeddings": False,
    }
    return config, {**ends, "do_sample": False, "max_new_tokens": 2048}


def _mistral_config(rows: int, tokenizer: Tokenizer) -> tuple[dict[str, Any], dict[str, Any]]:
    ends = _ids(tokenizer, bos_token_id="<s>", eos_token_id="</s>")
    config = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "vocab_size": rows,
        **SHAPE,
        **ends,
        "max_position_embeddings": 1024,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "sliding_window": 64,
        "tie_word_embeddings": False,
    }
    return config, {"_from_model_config": True, **ends}


def _gemma3_config(rows: int, tokenizer: Tokenizer) -> tuple[dict[str, Any], dict[str, Any]]:
    ends = _ids(tokenizer, bos_token_id="<bos>", eos_token_id="<eos>", pad_token_id="<pad>")
    text = {
        **{key: value for key, value in SHAPE.items() if key.startswith(("hidden", "intermediate", "num_"))},
        "head_dim": 8,
        "model_type": "gemma3_text",
        "vocab_size": rows,
        "max_position_embeddings": 1024,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 64,
        "query_pre_attn_scalar": 8,
    }
    images = _ids(
        tokenizer,
        boi_token_index="<start_of_image>",
        eoi_token_index="<end_of_image>",
        image_token_index="<image_soft_token>",
    )
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "mm_tokens_per_image": 4,
        "text_config": text,
        "vision_config": VISION,
        **images,
        "eos_token_id": ends["eos_token_id"],
        "initializer_range": 0.02,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
    }
    return config, {**ends, "cache_implementation": "hybrid"}


_CONFIGS = {"llama": _llama_config, "qwen2": _qwen2_config, "mistral": _mistral_config, "gemma3": _gemma3_config}


def _ids(tokenizer: Tokenizer, **tokens: str) -> dict[str, Any]:
    return {name: tokenizer.token_to_id(token) for name, token in tokens.items()}


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
