"""LoRA through peft: small matrices are trained beside the frozen weights, W + (alpha / rank) B A in place of W.

The adapters live inside the model, whose class stays what it is. What is saved is the sum, so that nothing downstream
knows of them: a frozen scorer is always a checkpoint of its own, never a model with its adapters switched off.
"""

import importlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpr_core.config.training import LoRAConfig
from dpr_core.errors import UsageError
from dpr_core.models.sharding import is_slice

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME = "default"


def add_adapters(model: "PreTrainedModel", settings: LoRAConfig, seed: int) -> None:
    """Freeze the model and put adapters into it that change nothing yet, in place.

    Seeds torch's generators, from which the first adapters and their dropout are drawn.
    """
    peft = _library()
    torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
    )
    try:
        peft.inject_adapter_in_model(config, model, _NAME)
    except ValueError as error:
        raise UsageError(f"lora.targets: {str(error).splitlines()[0]}") from error


@torch.no_grad()
def merged(model: "PreTrainedModel") -> dict[str, Tensor] | None:
    """The weights of the model with its adapters added in, named as without them, in float32 where some are held
    rounded, and in the CPU's memory but for slices; None where it has none."""
    adapted = {name: layer for name, layer in model.named_modules() if hasattr(layer, "get_delta_weight")}
    if not adapted:
        return None
    weights: dict[str, Tensor] = {}
    wide: dict[int, Tensor] = {}
    for name, weight in model.state_dict(keep_vars=True).items():
        if ".lora_" in name:
            continue
        layer, is_adapted, part = name.partition(".base_layer.")
        if id(weight) not in wide:
            values = weight.to(torch.promote_types(weight.dtype, torch.float32))
            if is_adapted and part == "weight":
                values = values + adapted[layer].get_delta_weight(_NAME)
            # One after another: beside the scorers, a GPU may have no room for all of them in float32.
            wide[id(weight)] = values if is_slice(values) else values.cpu()
        weights[name.replace(".base_layer.", ".")] = wide[id(weight)]
    return weights


def _library() -> Any:
    try:
        return importlib.import_module("peft")
    except ModuleNotFoundError:
        raise UsageError(
            "LoRA needs the `peft` package, which is not installed; pip install 'dense-path[lora]'"
        ) from None
