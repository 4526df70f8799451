"""Weight prepacking: on a CPU, linear layers whose weights lie in memory as oneDNN's matrix product reads them.

Of weights in rows, every product first makes blocks. A policy that draws is multiplied with few rows and many times
between two updates, so that it pays to do this once.
"""

import copy
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from dpr_core.models.sharding import unsharded_copy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS = 64
"""The blocks are best for products of about so many rows, and good for all others."""

LEAST = 2**16
"""Numbers of a weight below which calling the product takes longer than reading it."""


class PrepackedLinear(nn.Module):
    """A linear layer without gradient, in the type of its weights."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
        self.bias = None if layer.bias is None else layer.bias.detach()

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs.to(self.weight.dtype)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")
        return product


def drawing_copy(model: "PreTrainedModel", activations: torch.dtype) -> "PreTrainedModel":
    """The model as it draws: whole in this process, linear layers in the type of activations and the head as it is. On
    a CPU the large ones are prepacked, in a copy that shares all else; for a sharded model this is a collective."""
    whole = unsharded_copy(model, activations=activations)
    head = whole.get_output_embeddings()
    large = [
        name
        for name, layer in whole.named_modules()
        # The head's logits are float32 whatever it is held in.
        if _is_worth_it(layer) and (layer is not head or head.weight.dtype == torch.float32)
    ]
    if large and whole is model:
        whole = copy.deepcopy(model, {id(each): each for each in (*model.parameters(), *model.buffers())})
    for name in large:
        whole.set_submodule(name, PrepackedLinear(cast(nn.Linear, whole.get_submodule(name))))
    return whole


def _is_worth_it(layer: nn.Module) -> bool:
    if type(layer) is not nn.Linear or layer.weight.device.type != "cpu":
        return False
    return layer.weight.numel() >= LEAST and _can_prepack(layer.weight.dtype)


def _can_prepack(dtype: torch.dtype) -> bool:
    """Whether this build of torch has oneDNN's operators, whose names are not part of its documented interface, and the
    processor what they need."""
    operators = torch.ops.mkldnn
    if not (torch._C._has_mkldnn and hasattr(operators, "_linear_pointwise")):
        return False
    if dtype == torch.bfloat16:
        return hasattr(operators, "_is_mkldnn_bf16_supported") and bool(operators._is_mkldnn_bf16_supported())
    return dtype == torch.float32
