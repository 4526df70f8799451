"""Storage of torch.distributed.checkpoint: safetensors files, one a process, and an index of their tensors as JSON.

The files alone are what PyTorch's storage for Hugging Face would write. That one holds a share in memory once more
while it writes, and opens all files to read from one.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner

FILE = re.compile(r"tensors-\d{1,6}\.safetensors")

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
_OTHERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
DTYPES = {str(each).removeprefix("torch."): each for each in (*_FLOATS, *_OTHERS)}


def write_tensors(planner: SavePlanner, plan: SavePlan, folder: Path, rank: int) -> list[Path]:
    """What one process holds into a file of its own, if that is anything."""
    items = {item.index.fqn: item for item in plan.items}
    offsets = {name: list(item.tensor_data.chunk.offsets) for name, item in items.items() if item.tensor_data}
    assert len(items) == len(plan.items) == len(offsets), "one piece of each tensor in a process"
    if not items:
        return []
    tensors = {name: planner.resolve_data(item).detach().contiguous() for name, item in items.items()}  # type: ignore[union-attr]
    # What PyTorch's HuggingFaceStorageReader looks for.
    sharding = {name: {"saved_offsets": each} for name, each in offsets.items()}
    save_file(tensors, folder / _file(rank), {"format": "pt", "DCP_SHARDING_INFO": json.dumps(sharding)})
    return [folder / _file(rank)]


def indexed(metadata: Metadata, plans: Sequence[SavePlan]) -> dict[str, Any]:
    """The index of the tensors that all processes write."""
    items = ((item.index, rank) for rank, plan in enumerate(plans) for item in plan.items)
    files = {(index.fqn, index.offset): _file(rank) for index, rank in items}
    index: dict[str, Any] = {}
    for name, tensor in metadata.state_dict_metadata.items():
        assert isinstance(tensor, TensorStorageMetadata)
        index[name] = {
            "dtype": str(tensor.properties.dtype).removeprefix("torch."),
            "shape": list(tensor.size),
            "chunks": [[files[name, chunk.offsets], [*chunk.offsets], [*chunk.sizes]] for chunk in tensor.chunks],
        }
    return index


class Reader:
    """Reads from files that are mapped into memory, so that only the rows that are asked for are read.

    ValueError for an index that is none: whoever can write where states lie could have changed it.
    """

    def __init__(self, find: Callable[[str], Path], index: Any) -> None:
        if not isinstance(index, dict):
            raise ValueError("the index of the tensors is none")
        self._index = {name: _checked(name, entry) for name, entry in index.items()}
        self._open = cache(lambda file: safe_open(find(file), framework="pt"))
        chunks = [(name, file, chunk) for name, entry in self._index.items() for file, chunk in entry[1]]
        self._chunks = {MetadataIndex(name, chunk.offsets): (file, chunk) for name, file, chunk in chunks}
        self.metadata = Metadata({name: entry[0] for name, entry in self._index.items()})

    def shape(self, name: str) -> torch.Size:
        return self._index[name][0].size

    def whole(self, name: str) -> Tensor | None:
        """A tensor in one piece; None where there are several."""
        if name not in self._index:
            raise ValueError(f"the index lists no tensor {name!r}")
        pieces = self._index[name][1]
        return self._piece(name, *pieces[0]) if len(pieces) == 1 else None

    def read(self, plan: LoadPlan, planner: LoadPlanner) -> None:
        for item in plan.items:
            values = self._piece(item.storage_index.fqn, *self._chunks[item.storage_index])
            for dimension, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                values = values.narrow(dimension, start, length)
            target = planner.resolve_tensor(item).detach()
            target.copy_(values)
            planner.commit_tensor(item, target)

    def _piece(self, name: str, file: str, chunk: ChunkStorageMetadata) -> Tensor:
        values: Tensor = self._open(file).get_tensor(name)  # type: ignore[no-untyped-call]
        if values.shape != chunk.sizes or values.dtype != self._index[name][0].properties.dtype:
            raise ValueError(f"{name} in {file} is not what the index says of it")
        return values


Entry = tuple[TensorStorageMetadata, list[tuple[str, ChunkStorageMetadata]]]


def _checked(name: str, entry: Any) -> Entry:
    """One tensor of the index: pieces inside of it, as large together as it is."""
    try:
        shape, dtype = _sizes(entry["shape"]), DTYPES[entry["dtype"]]
        pieces = [(file, _sizes(offsets), _sizes(sizes)) for file, offsets, sizes in entry["chunks"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the index has no shape, type or pieces of {name!r}: {error}") from error
    for file, offsets, sizes in pieces:
        if not isinstance(file, str) or not FILE.fullmatch(file):
            raise ValueError(f"{name!r} is said to be in {file!r}, which is no file of a state")
        if not len(offsets) == len(sizes) == len(shape) or any(
            start + length > end for start, length, end in zip(offsets, sizes, shape, strict=True)
        ):
            raise ValueError(f"{name!r} has a piece of {list(sizes)} at {list(offsets)}, outside of {list(shape)}")
    volume = sum(math.prod(sizes) for _, _, sizes in pieces)
    if not pieces or volume != math.prod(shape) or len({offsets for _, offsets, _ in pieces}) < len(pieces):
        raise ValueError(f"the pieces of {name!r} are not the whole of it")
    chunks = [(file, ChunkStorageMetadata(offsets, sizes)) for file, offsets, sizes in pieces]
    return TensorStorageMetadata(TensorProperties(dtype), shape, [chunk for _, chunk in chunks]), chunks


def _file(rank: int) -> str:
    return f"tensors-{rank}.safetensors"


def _sizes(numbers: Any) -> torch.Size:
    if not isinstance(numbers, list) or any(type(each) is not int or not 0 <= each < 2**63 for each in numbers):
        raise ValueError(f"{numbers!r:.80} is no list of sizes")
    return torch.Size(numbers)
