"""A GGUF file of a tiny model, as llama.cpp's converter writes one."""

import json
from pathlib import Path
from typing import Any

import pytest


def write_gguf(path: Path, model: Any, tokenizer: Any) -> None:
    """A model of the Llama family as llama.cpp writes it: its names, and rows of query and key in its order."""
    gguf = pytest.importorskip("gguf", reason="the package gguf writes the file to be converted")
    config, head = model.config, model.config.head_dim
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(vocabulary["vocab"], key=vocabulary["vocab"].get)
    # The reader adds this one where it is missing, and then there would be more tokens than rows.
    unused = ["<|endoftext|>", *(f"[unused{i}]" for i in range(len(tokens) + 1, config.vocab_size))]
    special = set(tokenizer.all_special_tokens)
    writer.add_token_list([*tokens, *unused])
    writer.add_token_types([3 if token in special else 1 for token in tokens] + [5] * len(unused))
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        values = weight.numpy()
        if "q_proj" in name or "k_proj" in name:
            heads = len(values) // head
            values = values.reshape(heads, 2, head // 2, -1).swapaxes(1, 2).reshape(values.shape).copy()
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
