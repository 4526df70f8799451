"""Decoder layers as torch.compile makes them: what goes element by element, norms, rotations and gates, is fused.

Layers of a kind share their code, whatever the model and however long its rows are. What is drawn goes through the
layers as they were (`uncompiled`), since every token would meet other shapes.
"""

import sys
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import nn

from dpr_core.errors import UsageError
from dpr_core.models.sharding import networks

KINDS = 64
"""Of one piece of code: trained or frozen, with gradients or without, one row or several, masked or not, and so on.
torch's own limit of 8, beyond which it no longer compiles, is of a single use of a single model."""


def compile_layers(module: nn.Module) -> None:
    """Have the layers of a policy or a critic compiled when they first run, in place; names of weights stay. It comes
    after gradient checkpointing is enabled, and after the module is put where it computes."""
    # They take most of a second to import.
    import torch._dynamo
    from transformers.modeling_layers import GradientCheckpointingLayer

    _refuse_without_compiler(next(module.parameters()).device.type)
    torch._dynamo.config.recompile_limit = KINDS
    # It would cut layers where DDP's buckets end. They are small enough for gradients to be exchanged meanwhile.
    torch._dynamo.config.optimize_ddp = False
    if getattr(module, "packed", False):
        for network in networks(module):
            _leave_out(network.config._attn_implementation)
    for layer in [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]:
        # Nothing is compiled around a checkpoint that has attention in it which is not.
        for part in layer.children() if layer.gradient_checkpointing else [layer]:
            part.compile(dynamic=True)


def uncompiled() -> AbstractContextManager[object]:
    """While this lasts, layers run as they were."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@cache
def _leave_out(attention: str) -> None:
    """Attention in packed rows depends on where sequences end: it would be compiled again for each row."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    disable: Any = torch.compiler.disable
    ALL_ATTENTION_FUNCTIONS.register(attention, disable(ALL_ATTENTION_FUNCTIONS[attention]))


@cache
def _refuse_without_compiler(device: str) -> None:
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except RuntimeError as error:
        needed = "Triton, which comes with torch's builds for GPUs," if device == "cuda" else "a C++ compiler (g++)"
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UsageError(
            f"execution.compile: torch {torch.__version__} cannot compile for {device} here ({reason}); "
            f"install {needed} and Python's headers, or leave it out: --set execution.compile=false"
        ) from error
