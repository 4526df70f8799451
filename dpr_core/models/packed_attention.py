"""Attention in rows of several sequences without a mask: on a CPU each sequence by itself, which it does best.

That is one of transformers' attention implementations, and does what `sdpa` does wherever no row is packed. Flash
attention finds the sequences of a packed row by their positions.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpr_core.data.batching import Batch
from dpr_core.masking import causal_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "sdpa_by_sequence"


def adopt(model: "PreTrainedModel") -> None:
    """Where the model is on a CPU with sdpa, it takes packed rows from now on."""
    if model.device.type != "cpu" or model.config._attn_implementation != "sdpa":
        return
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    if NAME not in AttentionInterface():
        AttentionInterface.register(NAME, partial(by_sequence, sdpa_attention_forward))
        AttentionMaskInterface.register(NAME, sdpa_mask)
    model.config._attn_implementation = NAME


def packs(model: Any, device: torch.device, asked: bool | None) -> bool:
    """As asked for (`Execution.packing`), or where a packed row needs no mask of all pairs of its tokens."""
    attention = model.config._attn_implementation
    return ("flash" in attention or (attention == NAME and device.type == "cpu")) if asked is None else asked


def states(body: Any, batch: Batch) -> Tensor:
    """The last layer's (N, D) from which the batch's response tokens are predicted."""
    mask = batch.lengths.view(1, 1, 1, -1) if batch.is_packed and body.config._attn_implementation == NAME else None
    read = body(input_ids=batch.input_ids, attention_mask=mask, position_ids=batch.positions, use_cache=False)
    hidden: Tensor = read.last_hidden_state[batch.predicts]
    return hidden


def by_sequence(
    sdpa: Any, module: Any, queries: Tensor, keys: Tensor, values: Tensor, attention_mask: Tensor | None, **others: Any
) -> tuple[Tensor, None]:
    """(1, heads, tokens, width) of a row -> (1, tokens, heads, width).

    A mask of integers holds the lengths of the row's sequences: with four dimensions, like a finished mask, it comes
    here as `states` gave it.
    """
    if attention_mask is None or attention_mask.dtype != torch.long:
        read, _ = sdpa(module, queries, keys, values, attention_mask, **others)
        return read, None
    lengths = attention_mask.flatten().tolist()
    window = others.get("sliding_window")
    parts = zip(*(torch.split(each, lengths, dim=2) for each in (queries, keys, values)), strict=True)
    return torch.cat([sdpa(module, q, k, v, _window_mask(q, window), **others)[0] for q, k, v in parts], dim=1), None


def _window_mask(queries: Tensor, window: int | None) -> Tensor | None:
    """None is a causal mask; only what is longer than a sliding window needs another."""
    length = queries.shape[2]
    if window is None or length <= window:
        return None
    return causal_mask(torch.arange(length, device=queries.device)[None], length, window, queries.dtype)
