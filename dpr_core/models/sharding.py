"""FSDP2: weights sharded over processes along their first dimension, and gathered layer by layer in a pass."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from dpr_core import distributed
from dpr_core.config.execution import LaunchConfig
from dpr_core.distributed import is_dtensor
from dpr_core.state import SavedTensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

M = TypeVar("M", bound=nn.Module)

_sharded: "WeakSet[nn.Module]" = WeakSet()
"""Sharded policies and critics."""

_skeletons: "WeakKeyDictionary[nn.Module, PreTrainedModel]" = WeakKeyDictionary()
"""For each sharded model, a copy on the meta device without FSDP's hooks."""


def to_device_or_shard(module: M, launch: LaunchConfig) -> M:
    """Move a policy or a critic to its device, or shard it with FSDP, in place."""
    if launch.strategy != "fsdp" or distributed.world_size() == 1:
        return module.to(distributed.device())
    if not is_sharded(module):
        _shard(module, launch.cpu_offload)
    return module


def _shard(module: nn.Module, cpu_offload: bool) -> None:
    # Imported here because they take most of a second.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard, register_fsdp_forward_method

    device = distributed.device()
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if cpu_offload else OffloadPolicy()
    layers: set[str] = set()
    for model in networks(module):
        _skeletons[model] = _without_weights(model, device)
        layers |= set(model._no_split_modules or ())
    for part in [part for part in module.modules() if type(part).__name__ in layers]:
        fully_shard(part, mesh=mesh, offload_policy=offload, reshard_after_forward=True)
    # Embeddings, last norm and head may be tied, so they are one group, which stays gathered until the end.
    fully_shard(module, mesh=mesh, offload_policy=offload, reshard_after_forward=False)
    _sharded.add(module)
    if hasattr(module, "response_states"):
        register_fsdp_forward_method(module, "response_states")


def is_sharded(module: nn.Module) -> bool:
    """Whether a module is sharded with FSDP."""
    return module in _sharded


def networks(module: nn.Module) -> "list[PreTrainedModel]":
    """The transformers models of a policy or a critic."""
    from transformers import PreTrainedModel

    return [part for part in module.children() if isinstance(part, PreTrainedModel)]


def device_of(module: nn.Module) -> torch.device:
    """The device that a module computes on; with CPU offload its shards are elsewhere."""
    weight = next(module.parameters())
    return distributed.device() if is_dtensor(weight) else weight.device


@contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """A context without dropout and gradients; sharded modules are resharded at its end."""
    sharded = [module for module in modules if is_sharded(module)]
    for module in modules:
        module.eval()
    # Weights gathered in inference mode could not be trained on later.
    with torch.no_grad() if sharded else torch.inference_mode():
        yield
    for module in sharded:
        module.reshard()  # type: ignore[operator]


def unsharded_copy(
    model: "PreTrainedModel", device: torch.device | None = None, activations: torch.dtype = torch.float32
) -> "PreTrainedModel":
    """The model with all weights in this process and linear layers in the dtype of activations: itself, or a copy. For
    a sharded model this is a collective, which all processes must call."""
    layers = rounded_layers(model, activations)
    if model not in _skeletons:
        return _rounded(model, [layer for _, layer in layers], activations)
    rounded = {f"{name}.{part}" for name, _ in layers for part in ("weight", "bias")}
    twin = copy.deepcopy(_skeletons[model])
    weights = model.state_dict(keep_vars=True)
    types = {name: activations if name in rounded else weight.dtype for name, weight in weights.items()}
    twin.load_state_dict(unsharded_in_place(weights, device or distributed.device(), types), assign=True)
    return twin


def _rounded(model: "PreTrainedModel", layers: Sequence[nn.Linear], dtype: torch.dtype) -> "PreTrainedModel":
    """A copy with cast weights in these layers and all others shared; the model itself where they are cast already."""
    weights = {id(weight): weight for layer in layers for weight in layer.parameters() if weight.dtype != dtype}
    if not weights:
        return model
    with torch.inference_mode(False), torch.no_grad():
        cast: dict[int, Any] = {at: nn.Parameter(weight.to(dtype), False) for at, weight in weights.items()}
    shared = {id(each): each for each in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared | cast)


def rounded_layers(model: "PreTrainedModel", activations: torch.dtype) -> list[tuple[str, nn.Linear]]:
    """The layers that autocast casts for each use: all linear ones but the head, which runs in float32."""
    if activations == torch.float32:
        return []
    head = model.get_output_embeddings()
    return [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head]


def unsharded_in_place(
    weights: Mapping[str, Tensor], device: torch.device | None, types: Mapping[str, torch.dtype] | None = None
) -> dict[str, Tensor]:
    """The full weights on a device, gathered one by one; tied ones stay tied. A device of None takes part in the
    gathering and keeps nothing."""
    full: dict[int, Tensor] = {}
    # Shards cannot be read in inference mode, in which rollouts run.
    with torch.inference_mode(False), torch.no_grad():
        for name, weight in weights.items():
            if id(weight) not in full:
                each = unshard(weight).to(dtype=types[name] if types else weight.dtype)
                full[id(weight)] = each.to(device) if device else torch.empty(0)
    return {name: full[id(weight)] for name, weight in weights.items()} if device else {}


def unshard(weight: Tensor) -> Tensor:
    """The full weight, in every process."""
    if not is_dtensor(weight):
        return weight.detach()
    full: Tensor = weight.detach().to(distributed.device()).full_tensor()  # type: ignore[attr-defined]
    return full


def shard_like(values: Tensor | SavedTensor, like: Tensor) -> Tensor:
    """This process's shard of full values, where `like` is sharded."""
    if isinstance(values, SavedTensor):
        return values.like(like)
    if not is_dtensor(like) or is_dtensor(values):
        return values
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor)
    ranks, rank = like.device_mesh.size(), like.device_mesh.get_local_rank()
    rows = -(-len(values) // ranks)
    # A copy, since a view would keep the full values in memory.
    mine = values[rank * rows : (rank + 1) * rows].to(like.device, like.dtype, copy=True)
    return DTensor.from_local(
        mine, like.device_mesh, like.placements, run_check=False, shape=values.shape, stride=values.stride()
    )


def _without_weights(model: "PreTrainedModel", device: torch.device) -> "PreTrainedModel":
    memo: dict[int, Any] = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), weight.requires_grad)
        for weight in model.parameters()
    }
    memo |= {id(buffer): buffer.to(device) for buffer in model.buffers()}
    return copy.deepcopy(model, memo)
