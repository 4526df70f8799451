"""A slot-based KV cache, and a decoder over rows of different lengths."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpr_core.logprobs import float32_logits
from dpr_core.masking import causal_mask
from dpr_core.models.prepacked import PrepackedLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Spans = Sequence[tuple[int, int]]
"""Consecutive rows as (number of rows, length of the longest)."""


class SlotKVCache:
    """Keys and values of `count` slots: a token at position p is in column p of its row's slot.

    It implements the cache interface of transformers' attention layers. Columns grow by doubling, up to `most`.
    """

    def __init__(self, count: int, heads: int, most: int) -> None:
        self.count = count
        self.heads = heads
        self.most = most
        self.columns = 0
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        """Keys and values of each layer, (slots, heads, columns, width of a head)."""

    def set_positions(self, first: int, positions: Tensor, width: int) -> None:
        """Address the next tokens: `positions` (B, T) of the slots from `first` on, which attend to `width` columns."""
        if width > self.columns:
            self.columns = min(self.most, max(width, 2 * self.columns))
        self.visible = slice(first, first + len(positions)), slice(None), slice(0, width)
        heads = torch.arange(first * self.heads, (first + len(positions)) * self.heads, device=positions.device)
        self.places = (heads.view(-1, self.heads, 1) * self.columns + positions[:, None]).flatten()

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store the keys and values (B, heads, T, width) of the addressed tokens; return those of all visible
        columns."""
        keys = _rounded(keys, values)
        stored = self._layer(layer, keys, values)
        for store, new in zip(stored, (keys, values), strict=True):
            store.flatten(0, 2).index_copy_(0, self.places, new.flatten(0, 2))
        return stored[0][self.visible], stored[1][self.visible]

    def move(self, source: Tensor, target: Tensor, width: int) -> None:
        """Move rows of up to `width` tokens from the slots `source` to the slots `target`."""
        for layer in self.layers.values():
            for store in layer:
                store[target, :, :width] = store[source, :, :width]

    def _layer(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        stored = self.layers.get(layer)
        if stored is None or stored[0].shape[2] < self.columns:
            # Zeros, since masking does not remove NaNs of uninitialised memory.
            grown = tuple(new.new_zeros(self.count, self.heads, self.columns, new.shape[3]) for new in (keys, values))
            for old, store in zip(stored or (), grown, strict=False):
                store[:, :, : old.shape[2]] = old
            stored = self.layers[layer] = (grown[0], grown[1])
        return stored


def _rounded(keys: Tensor, values: Tensor) -> Tensor:
    """Keys in the dtype of values: rotary embeddings leave them in float32, which autocast would cast at every read."""
    return keys.to(values.dtype)


class Decoder:
    """A model with its KV cache.

    `logits` depends on tensors and shapes alone, without synchronising with the device.
    """

    def __init__(self, model: "PreTrainedModel", slots: int, columns: int) -> None:
        self.body: Any = model.get_decoder()
        self.head: Any = model.get_output_embeddings()
        self.slots = SlotKVCache(slots, self.body.config.num_key_value_heads, columns)

    def logits(self, first: int, ids: Tensor, positions: Tensor, last: Tensor, spans: Spans) -> Tensor:
        """Feed the tokens `ids` (B, T) at `positions` to the slots from `first` on, and return the logits (B, V) after
        the one at `last` (B,). `spans` are the lengths of the rows, these tokens included."""
        width = max(tokens for _, tokens in spans)
        self.slots.set_positions(first, positions, width)
        hidden = self.body(
            input_ids=ids,
            attention_mask=self._masks(positions, width),
            position_ids=positions,
            past_key_values=self.slots,
            use_cache=True,
            spans=spans,
        ).last_hidden_state
        chosen = hidden[torch.arange(len(ids), device=ids.device), last]
        if isinstance(self.head, PrepackedLinear):
            prepacked: Tensor = self.head(chosen)
            return prepacked
        return float32_logits(chosen, self.head.weight, self.head.bias)

    def move(self, source: Tensor, target: Tensor, width: int) -> None:
        self.slots.move(source, target, width)

    def _masks(self, positions: Tensor, width: int) -> Tensor | dict[str, Tensor]:
        """The causal mask, or one for each type of layer where they differ."""
        config, dtype = self.body.config, self.head.weight.dtype
        window = getattr(config, "sliding_window", None)
        layer_types = getattr(config, "layer_types", None)
        if layer_types is None:
            return causal_mask(positions, width, window, dtype)
        windows = {"full_attention": None, "sliding_attention": window}
        return {kind: causal_mask(positions, width, windows[kind], dtype) for kind in set(layer_types)}


def attend(
    attention: Callable[..., tuple[Tensor, None]],
    module: Any,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    spans: Spans,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention span by span, so that rows read no more columns than the longest row of their span."""
    parts, start = [], 0
    for rows, width in spans:
        row = slice(start, start + rows)
        visible = row, slice(None), slice(0, width)
        output = attention(
            module, queries[row], keys[visible], values[visible], mask[row, ..., :width], scaling=scaling
        )
        parts.append(output[0])
        start += rows
    return parts[0] if len(parts) == 1 else torch.cat(parts), None


@contextmanager
def slot_attention(models: "Sequence[PreTrainedModel]") -> Iterator[None]:
    """A context in which the models' attention is `attend`."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register("slots", partial(attend, sdpa_attention_forward))
    usual = [model.config._attn_implementation for model in models]
    for model in models:
        model.config._attn_implementation = "slots"
    try:
        yield
    finally:
        for model, implementation in zip(models, usual, strict=True):
            model.config._attn_implementation = implementation
