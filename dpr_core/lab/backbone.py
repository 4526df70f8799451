"""Untrained networks of the four model families, tiny, with small but real tokenizers.

The tokenizers follow each family's conventions: special tokens, prefix space, BOS or none.
"""

from collections.abc import Callable
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from dpr_core.config.model import Family, LabBackboneConfig

CLASSES: dict[Family, tuple[Callable[..., PreTrainedConfig], Callable[[Any], PreTrainedModel]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
}

INITIAL_DEVIATION = 0.15
"""transformers' 0.02 is small for such narrow networks: many seeds then stay where they can copy but not add."""

WORDS = ("Start", "at", "add", "Steps", "The", "answer", "is", "Ball", "Swap", "swap")
"""Each becomes one token, with and without a space in front; everything else is single characters or bytes."""


def untrained(config: LabBackboneConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Random weights and the family's tokenizer. As in real checkpoints, there are more rows than tokens."""
    tokenizer = build_tokenizer(config.family)
    config_class, model_class = CLASSES[config.family]
    extra = {"head_dim": config.width // config.heads} if config.family == "gemma3" else {}
    torch.manual_seed(config.seed)
    settings = config_class(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=config.width,
        intermediate_size=config.feed_forward,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=config.positions,
        initializer_range=INITIAL_DEVIATION,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **extra,
    )
    return model_class(settings), tokenizer


def build_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """A tokenizer that encodes any text, and the lab's text in one token a word, digit or mark."""
    return _BUILDERS[family]()


def _llama() -> PreTrainedTokenizerFast:
    """BOS in front by itself; no pad token, but a reserved one that may serve."""
    tokenizer = _byte_level(["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"])
    return _wrap(_with_bos(tokenizer, "<|begin_of_text|>"), bos="<|begin_of_text|>", eos="<|end_of_text|>")


def _qwen2() -> PreTrainedTokenizerFast:
    """No BOS; the end token is the pad token."""
    return _wrap(_byte_level(["<|endoftext|>"]), eos="<|endoftext|>", pad="<|endoftext|>")


def _mistral() -> PreTrainedTokenizerFast:
    """BOS in front by itself; no pad token; text starts with a space that was not there."""
    tokenizer = _metaspace(["<unk>", "<s>", "</s>"], prefix_space=True)
    return _wrap(_with_bos(tokenizer, "<s>"), bos="<s>", eos="</s>", unk="<unk>")


def _gemma3() -> PreTrainedTokenizerFast:
    """Pad, EOS and BOS are 0, 1 and 2; BOS in front by itself."""
    tokenizer = _metaspace(["<pad>", "<eos>", "<bos>", "<unk>"], prefix_space=False)
    return _wrap(_with_bos(tokenizer, "<bos>"), bos="<bos>", eos="<eos>", pad="<pad>", unk="<unk>")


_BUILDERS = {"llama": _llama, "qwen2": _qwen2, "mistral": _mistral, "gemma3": _gemma3}


def _byte_level(special: list[str]) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary, merges = _with_words(special + alphabet, space="Ġ")
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_special(tokenizer, special)


def _metaspace(special: list[str], *, prefix_space: bool) -> Tokenizer:
    characters = [chr(c) for c in range(0x21, 0x7F)] + ["▁", "\n"]
    pieces = special + [f"<0x{byte:02X}>" for byte in range(256)] + characters
    vocabulary, merges = _with_words(pieces, space="▁")
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if prefix_space else "never", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if prefix_space else []))
    return _with_special(tokenizer, special)


def _with_words(pieces: list[str], space: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-pair merges that build each word from its left end, letter by letter."""
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for word in (form for plain in WORDS for form in (space + plain, plain)):
        for end in range(1, len(word)):
            merge = (word[:end], word[end])
            if merge not in merges:
                merges.append(merge)
                vocabulary.setdefault(word[: end + 1], len(vocabulary))
    return vocabulary, merges


def _with_special(tokenizer: Tokenizer, special: list[str]) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def _with_bos(tokenizer: Tokenizer, bos: str) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


def _wrap(
    tokenizer: Tokenizer, *, eos: str, bos: str | None = None, pad: str | None = None, unk: str | None = None
) -> PreTrainedTokenizerFast:
    names = {"eos_token": eos, "bos_token": bos, "pad_token": pad, "unk_token": unk}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        **{name: token for name, token in names.items() if token is not None},
    )
