"""Packed attention: several sequences in one row without attending to each other, and without a mask of all pairs.

On a CPU, sdpa runs on each sequence by itself, through an attention implementation registered with transformers that
equals `sdpa` wherever no row is packed. Flash attention, where it is asked to pack, finds the boundaries from the
position ids.
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


def enable_packing(model: "PreTrainedModel") -> None:
    """Let a model on a CPU with sdpa take packed rows, in place."""
    if model.device.type != "cpu" or model.config._attn_implementation != "sdpa":
        return
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    if NAME not in AttentionInterface():
        AttentionInterface.register(NAME, partial(attend_by_sequence, sdpa_attention_forward))
        AttentionMaskInterface.register(NAME, sdpa_mask)
    model.config._attn_implementation = NAME


def uses_packing(model: Any, device: torch.device, setting: bool | None) -> bool:
    """The setting (`ExecutionConfig.packing`), by default True for sdpa on a CPU, which needs no mask of all pairs."""
    unset = device.type == "cpu" and model.config._attn_implementation == NAME
    return unset if setting is None else setting


def response_hidden_states(body: Any, batch: Batch) -> Tensor:
    """(N, D) last hidden states from which the batch's response tokens are predicted."""
    mask = batch.lengths.view(1, 1, 1, -1) if batch.is_packed and body.config._attn_implementation == NAME else None
    output = body(input_ids=batch.input_ids, attention_mask=mask, position_ids=batch.positions, use_cache=False)
    hidden: Tensor = output.last_hidden_state[batch.predicts]
    return hidden


def attend_by_sequence(
    sdpa: Any, module: Any, queries: Tensor, keys: Tensor, values: Tensor, attention_mask: Tensor | None, **others: Any
) -> tuple[Tensor, None]:
    """(1, heads, tokens, width) of a row -> (1, tokens, heads, width).

    An integer mask holds the lengths of the row's sequences; having four dimensions, like a finished mask, it is passed
    through by transformers as `response_hidden_states` gave it.
    """
    if attention_mask is None or attention_mask.dtype != torch.long:
        output, _ = sdpa(module, queries, keys, values, attention_mask, **others)
        return output, None
    lengths = attention_mask.flatten().tolist()
    window = others.get("sliding_window")
    parts = zip(*(torch.split(each, lengths, dim=2) for each in (queries, keys, values)), strict=True)
    return torch.cat([sdpa(module, q, k, v, _window_mask(q, window), **others)[0] for q, k, v in parts], dim=1), None


def _window_mask(queries: Tensor, window: int | None) -> Tensor | None:
    """The mask of a sequence longer than the sliding window; None, which is causal, for any other."""
    length = queries.shape[2]
    if window is None or length <= window:
        return None
    return causal_mask(torch.arange(length, device=queries.device)[None], length, window, queries.dtype)
