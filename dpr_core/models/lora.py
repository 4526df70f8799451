"""LoRA through peft: low-rank adapters beside frozen weights, W + (alpha / rank) B A in place of W.

Adapters are injected into the model, whose class stays the same. Checkpoints hold the merged weights, so that nothing
downstream depends on adapters: a frozen scorer is always a checkpoint, never a model with adapters disabled.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpr_core.config.training import LoRAConfig
from dpr_core.distributed import is_dtensor
from dpr_core.errors import UsageError
from dpr_core.models.weights import check_finite

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


def merged_adapters(model: "PreTrainedModel", folder: Path, weights: Mapping[str, Tensor]) -> "PreTrainedModel":
    """A model with LoRA adapters that another program trained merged into it: their settings by `folder`."""
    peft = _import_peft()
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        # PiSSA and its like begin by changing the weights of the base.
        if config.peft_type != "LORA" or not isinstance(config.init_lora_weights, bool):
            raise UsageError(f"{config.peft_type.value}, initialised as {config.init_lora_weights!r}")
        if config.megatron_config:
            raise UsageError("they name a module that is to be imported (megatron_core), which is never done")
        adapted = peft.PeftModel(model, config, _NAME)
        found = peft.set_peft_model_state_dict(adapted, dict(weights), _NAME)
        missing = [name for name in found.missing_keys if ".lora_" in name or ".modules_to_save." in name]
        if lost := sorted([*found.unexpected_keys, *missing]):
            raise UsageError(f"{len(lost)} of its weights have no counterpart, such as {lost[0]}")
        merged: PreTrainedModel = adapted.merge_and_unload()
    # What peft raises for settings and weights that do not fit cannot be listed.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UsageError(
            f"{folder}: its adapters cannot be merged into the model here: {reason}; merge them where they were "
            "trained, and give what comes of it"
        ) from error
    check_finite(merged, folder)
    return merged


def _import_peft() -> Any:
    try:
        return importlib.import_module("peft")
    except ModuleNotFoundError:
        raise UsageError(
            "LoRA needs the `peft` package, which is not installed; pip install 'dense-path[lora]'"
        ) from None
