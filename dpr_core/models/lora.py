"""LoRA through peft: low-rank adapters beside frozen weights, W + (alpha / rank) B A in place of W.

Adapters are injected into the model, whose class stays the same. Checkpoints hold the merged weights, so that nothing
downstream depends on adapters: a frozen scorer is always a checkpoint, never a model with adapters disabled.
"""

import importlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpr_core.config.training import LoRAConfig
from dpr_core.distributed import is_dtensor
from dpr_core.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME = "default"


def add_adapters(model: "PreTrainedModel", settings: LoRAConfig, seed: int) -> None:
    """Freeze the model and inject adapters that are initially zero, in place.

    Seeds torch's generators, from which the adapters' initial weights and dropout are drawn.
    """
    peft = _import_peft()
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
def merged_weights(model: "PreTrainedModel") -> dict[str, Tensor] | None:
    """The weights with adapters merged in, under their names without adapters, in float32 and on the CPU (sharded ones
    stay sharded); None where the model has no adapters."""
    adapted = {name: layer for name, layer in model.named_modules() if hasattr(layer, "get_delta_weight")}
    if not adapted:
        return None
    weights: dict[str, Tensor] = {}
    full_precision: dict[int, Tensor] = {}
    for name, weight in model.state_dict(keep_vars=True).items():
        if ".lora_" in name:
            continue
        layer, is_adapted, part = name.partition(".base_layer.")
        if id(weight) not in full_precision:
            values = weight.to(torch.promote_types(weight.dtype, torch.float32))
            if is_adapted and part == "weight":
                values = values + adapted[layer].get_delta_weight(_NAME)
            # One by one: beside the scorers, a GPU may have no room for all of them in float32.
            full_precision[id(weight)] = values if is_dtensor(values) else values.cpu()
        weights[name.replace(".base_layer.", ".")] = full_precision[id(weight)]
    return weights


def _import_peft() -> Any:
    try:
        return importlib.import_module("peft")
    except ModuleNotFoundError:
        raise UsageError(
            "LoRA needs the `peft` package, which is not installed; pip install 'dense-path[lora]'"
        ) from None
