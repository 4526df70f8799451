"""A model that reads rows of different age at once: every row has a slot, in which its keys and values stay."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpr_core.logprobs import float32_logits
from dpr_core.masking import causal_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Spans = Sequence[tuple[int, int]]
"""Rows that follow one another: how many, and how many tokens the longest of them has."""


class SlotKVCache:
    """Keys and values of `count` rows: those of a row's token at position p are in column p of the row's slot.

    To transformers' attention layers this is a cache. Columns are added by doubling, up to `most`.
    """

    def __init__(self, count: int, heads: int, most: int) -> None:
        self.count = count
        self.heads = heads
        self.most = most
        self.columns = 0
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        """(slots, heads, columns, width of a head) of keys and of values."""

    def aim(self, first: int, positions: Tensor, width: int) -> None:
        """The next tokens are those at `positions` (B, T) of the slots from `first` on; `width` columns are seen."""
        if width > self.columns:
            self.columns = min(self.most, max(width, 2 * self.columns))
        self.seen = slice(first, first + len(positions)), slice(None), slice(0, width)
        heads = torch.arange(first * self.heads, (first + len(positions)) * self.heads, device=positions.device)
        self.places = (heads.view(-1, self.heads, 1) * self.columns + positions[:, None]).flatten()

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keep what (B, heads, T, width) the next tokens leave behind, and return that of all that is seen."""
        keys = _rounded(keys, values)
        kept = self._layer(layer, keys, values)
        for store, new in zip(kept, (keys, values), strict=True):
            store.flatten(0, 2).index_copy_(0, self.places, new.flatten(0, 2))
        return kept[0][self.seen], kept[1][self.seen]

    def move(self, source: Tensor, target: Tensor, width: int) -> None:
        """The rows in the slots `source`, of up to `width` tokens, go to the slots `target`."""
        for layer in self.layers.values():
            for store in layer:
                store[target, :, :width] = store[source, :, :width]

    def _layer(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        kept = self.layers.get(layer)
        if kept is None or kept[0].shape[2] < self.columns:
            # Zeros, since a masked column counts for nothing only while it holds a number.
            grown = tuple(new.new_zeros(self.count, self.heads, self.columns, new.shape[3]) for new in (keys, values))
            for old, store in zip(kept or (), grown, strict=False):
                store[:, :, : old.shape[2]] = old
            kept = self.layers[layer] = (grown[0], grown[1])
        return kept


def _rounded(keys: Tensor, values: Tensor) -> Tensor:
    """The rotation leaves keys in float32, which autocast would round each time that they are read."""
    return keys.to(values.dtype)


class Decoder:
    """One model, and what it remembers of the rows in its slots.

    `logits` depends on nothing but tensors and their shapes, and waits for no device.
    """

    def __init__(self, model: "PreTrainedModel", slots: int, columns: int) -> None:
        self.body: Any = model.get_decoder()
        self.head: Any = model.get_output_embeddings()
        self.slots = SlotKVCache(slots, self.body.config.num_key_value_heads, columns)

    def logits(self, first: int, ids: Tensor, positions: Tensor, last: Tensor, spans: Spans) -> Tensor:
        """(B, V) for the token after the one at `last` (B,) of the tokens `ids` (B, T), which are read into the slots
        from `first` on; `positions` are theirs, and `spans` say how long the rows are then."""
        width = max(tokens for _, tokens in spans)
        self.slots.aim(first, positions, width)
        hidden = self.body(
            input_ids=ids,
            attention_mask=self._masks(positions, width),
            position_ids=positions,
            past_key_values=self.slots,
            use_cache=True,
            spans=spans,
        ).last_hidden_state
        chosen = hidden[torch.arange(len(ids), device=ids.device), last]
        return float32_logits(chosen, self.head.weight, self.head.bias)

    def move(self, source: Tensor, target: Tensor, width: int) -> None:
        self.slots.move(source, target, width)

    def _masks(self, positions: Tensor, width: int) -> Tensor | dict[str, Tensor]:
        """By type of layer for models whose layers differ."""
        config, dtype = self.body.config, self.head.weight.dtype
        window = getattr(config, "sliding_window", None)
        kinds = getattr(config, "layer_types", None)
        if kinds is None:
            return causal_mask(positions, width, window, dtype)
        windows = {"full_attention": None, "sliding_attention": window}
        return {kind: causal_mask(positions, width, windows[kind], dtype) for kind in set(kinds)}


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
    """`attention` in which the rows of each span read no more of their slots than the longest of them fills."""
    parts, start = [], 0
    for rows, width in spans:
        row = slice(start, start + rows)
        seen = row, slice(None), slice(0, width)
        read = attention(module, queries[row], keys[seen], values[seen], mask[row, ..., :width], scaling=scaling)
        parts.append(read[0])
        start += rows
    return parts[0] if len(parts) == 1 else torch.cat(parts), None


@contextmanager
def attending(models: "Sequence[PreTrainedModel]") -> Iterator[None]:
    """Models whose attention is `attend`; their own, which may be one that takes no mask, comes back afterwards."""
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
