"""Attention in a packed row without a mask: each sequence by itself, which is what a CPU does best.

It is one of transformers' attention implementations, and does what `sdpa` does wherever no row is packed.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from dpr_core.rollouts.slots import causal_mask

NAME = "sdpa_by_sequence"


def by_sequence(
    module: Any, queries: Tensor, keys: Tensor, values: Tensor, attention_mask: Tensor | None, **others: Any
) -> tuple[Tensor, None]:
    """(1, heads, tokens, width) of a row -> (1, tokens, heads, width). A mask of integers is that of `as_mask`."""
    if attention_mask is None or attention_mask.dtype != torch.long:
        return sdpa_attention_forward(module, queries, keys, values, attention_mask, **others)
    lengths = attention_mask.flatten().tolist()
    window = others.get("sliding_window")
    parts = zip(*(torch.split(each, lengths, dim=2) for each in (queries, keys, values)), strict=True)
    read = [sdpa_attention_forward(module, q, k, v, _window_mask(q, window), **others)[0] for q, k, v in parts]
    return torch.cat(read, dim=1), None


def _window_mask(queries: Tensor, window: int | None) -> Tensor | None:
    """None is a causal mask; only what is longer than a sliding window needs another."""
    length = queries.shape[2]
    if window is None or length <= window:
        return None
    return causal_mask(torch.arange(length, device=queries.device)[None], length, window, queries.dtype)


def as_mask(lengths: Tensor) -> Tensor:
    """The sequences' lengths in the shape of a finished mask, which transformers hands on to attention as it is."""
    return lengths.view(1, 1, 1, -1)


def adopt(model: PreTrainedModel) -> None:
    """From now on the model takes packed rows with such a mask."""
    AttentionInterface.register(NAME, by_sequence)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.config._attn_implementation = NAME
