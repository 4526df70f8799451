"""Weights of a checkpoint held against its config.json: dimensions, names and shapes before, finite values after."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dpr_core.errors import UsageError

MOST = 2**31 - 1
MOST_LAYERS = 10_000
"""Far beyond any published model, and still built in seconds."""

DIMENSIONS: dict[str, int] = {
    "vocab_size": MOST,
    "hidden_size": MOST,
    "intermediate_size": MOST,
    "num_hidden_layers": MOST_LAYERS,
    "num_attention_heads": MOST,
    "num_key_value_heads": MOST,
    "head_dim": MOST,
    "max_position_embeddings": MOST,
    "sliding_window": MOST,
}
"""Fields of config.json that a network is built from, with the largest value that is taken for meant."""

MAY_BE_NULL = {"num_key_value_heads", "head_dim", "sliding_window"}

MANY_TIES = 0.01
"""Of weights that are anything, one in 65,536 is a tie; of those that were float16, one in eight."""

FEW = 3
"""Names that an error lists; the others are counted."""

BLOCK = re.compile(r"^(.*?)\.(\d+)\.")

Shapes = dict[str, tuple[int, ...]]


def check_dimensions(config: Mapping[str, Any], source: str | Path, part: str = "") -> None:
    """UsageError for a dimension in config.json that no network can have; those of `text_config` and its like too."""
    for name, value in config.items():
        if isinstance(value, dict) and name.endswith("_config"):
            check_dimensions(value, source, f"{part}{name}.")
        if name not in DIMENSIONS or (value is None and name in MAY_BE_NULL):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= DIMENSIONS[name]:
            raise UsageError(
                f"{source}: config.json: {part}{name} is {repr(value)[:40]}, where a whole number from 1 to "
                f"{DIMENSIONS[name]} is expected; put back the config.json that belongs to these weights"
            )


def stored_shapes(files: Sequence[Path]) -> Shapes:
    """The shape of every tensor, from the headers of safetensors files alone."""
    shapes: Shapes = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as stored:
                found = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UsageError(f"no model could be loaded from {file}: {error}; fetch the checkpoint again") from error
        if twice := sorted(shapes.keys() & found.keys()):
            raise UsageError(f"{file}: another file of this checkpoint has {_few(twice)} too; fetch it again")
        shapes |= found
    return shapes


def check_layers(stored: Shapes, layers: int | None, source: str | Path) -> None:
    """UsageError where config.json asks for more layers than the weights have, before so many are built."""
    blocks: dict[str, set[int]] = defaultdict(set)
    for name in stored:
        if (block := BLOCK.match(name)) is not None:
            blocks[block[1]].add(int(block[2]))
    held = max(map(len, blocks.values()), default=0)
    if held and layers is not None and layers > held:
        raise UsageError(f"{source}: config.json: num_hidden_layers is {layers}, but its weights hold {held} layers")


def check_shapes(stored: Shapes, network: nn.Module, source: str | Path) -> None:
    """UsageError for a tensor whose shape is another one in a network that was built from config.json."""
    for name, weight in network.state_dict().items():
        if name in stored and stored[name] != tuple(weight.shape):
            raise UsageError(
                f"{source}: {name} has the shape {_shape(stored[name])} in its weights and {_shape(weight.shape)} by "
                "its config.json: one of the two belongs to another model"
            )


def check_names(missing: Iterable[object], unexpected: Iterable[object], source: str | Path) -> None:
    """UsageError unless each weight of the network was stored, and each that was stored has a place in it."""
    if gaps := sorted(map(str, missing)):
        raise UsageError(f"{source}: weights are missing or of the wrong shape: {_few(gaps)}")
    if surplus := sorted(map(str, unexpected)):
        raise UsageError(
            f"{source}: weights that its config.json has no place for: {_few(surplus)}; the model would be another "
            "one without them"
        )


@torch.no_grad()
def check_finite(network: nn.Module, source: str | Path) -> None:
    """UsageError for weights that are NaN or infinite."""
    broken = [name for name, weight in network.named_parameters() if not _is_finite(weight)]
    if broken:
        raise UsageError(f"{source}: weights that are not finite (NaN or infinite): {_few(broken)}")


@torch.no_grad()
def share_of_ties(network: nn.Module) -> float:
    """The part of the weights that lie exactly halfway between two neighbours in bfloat16. Any step, however small,
    then decides which of the two a bfloat16 forward pass sees: a jump of half the distance between them."""
    ties = weights = 0
    for weight in network.parameters():
        if weight.dtype == torch.float32:
            weights += weight.numel()
            ties += int(((weight.view(torch.int32) & 0xFFFF) == 0x8000).sum())
    return ties / weights if weights else 0.0


def _is_finite(weight: Tensor) -> bool:
    """In one pass and without a copy: least and greatest are NaN where any value is."""
    return not weight.numel() or all(bool(torch.isfinite(extreme)) for extreme in weight.aminmax())


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    return ", ".join(names[:FEW]) + more


def _shape(sizes: Iterable[int]) -> str:
    return " x ".join(map(str, sizes)) or "()"
