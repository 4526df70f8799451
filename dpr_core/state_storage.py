"""Storage of torch.distributed.checkpoint: safetensors files, one a process, and an index of their tensors as JSON.

The files alone are what PyTorch's storage for Hugging Face would write. That one holds a share in memory once more
while it writes, and opens all files to read from one.
"""

import json
import math
import os
import re
from collections.abc import Callable
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
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

FILE = re.compile(r"tensors-\d{1,6}\.safetensors")

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
_OTHERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
DTYPES = {str(each).removeprefix("torch."): each for each in (*_FLOATS, *_OTHERS)}


class Writer(StorageWriter):
    """Writes what one process holds into a file of its own."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.files: list[Path] = []
        self.index: dict[str, Any] = {}
        """Of all processes' tensors; rank 0 has it afterwards."""
        self._file = folder / f"tensors-{rank}.safetensors"

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        items = {item.index.fqn: item for item in plan.items}
        offsets = {name: list(item.tensor_data.chunk.offsets) for name, item in items.items() if item.tensor_data}
        assert len(items) == len(plan.items) == len(offsets), "one piece of each tensor in a process"
        if items:
            self.files.append(self._file)
            tensors = {name: planner.resolve_data(item).detach().contiguous() for name, item in items.items()}  # type: ignore[union-attr]
            sharding = {name: {"saved_offsets": each} for name, each in offsets.items()}
            # What PyTorch's HuggingFaceStorageReader looks for.
            save_file(tensors, self._file, {"format": "pt", "DCP_SHARDING_INFO": json.dumps(sharding)})
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(each.index, 0, self._file.name) for each in plan.items])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        places = {(each.index.fqn, each.index.offset): each.storage_data for rank in results for each in rank}
        for name, tensor in metadata.state_dict_metadata.items():
            assert isinstance(tensor, TensorStorageMetadata)
            self.index[name] = {
                "dtype": str(tensor.properties.dtype).removeprefix("torch."),
                "shape": list(tensor.size),
                "chunks": [[places[name, chunk.offsets], [*chunk.offsets], [*chunk.sizes]] for chunk in tensor.chunks],
            }

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False


class Reader(StorageReader):
    """Reads from files that are mapped into memory, so that only the rows that are asked for are read.

    ValueError for an index that is none: whoever can write where states lie could have changed it.
    """

    def __init__(self, find: Callable[[str], Path], index: Any) -> None:
        if not isinstance(index, dict):
            raise ValueError("the index of the tensors is none")
        self._index = {name: _checked(name, entry) for name, entry in index.items()}
        self._open = cache(lambda file: safe_open(find(file), framework="pt"))
        chunks = [(name, file, chunk) for name, entry in self._index.items() for file, chunk in entry[1]]
        self._metadata = Metadata({name: entry[0] for name, entry in self._index.items()})
        self._metadata.storage_data = {
            MetadataIndex(name, chunk.offsets): (file, chunk) for name, file, chunk in chunks
        }
        self._metadata.storage_meta = StorageMeta()

    def shape(self, name: str) -> torch.Size:
        return self._index[name][0].size

    def whole(self, name: str) -> Tensor | None:
        """A tensor in one piece; None where there are several."""
        if name not in self._index:
            raise ValueError(f"the index lists no tensor {name!r}")
        pieces = self._index[name][1]
        return self._piece(name, *pieces[0]) if len(pieces) == 1 else None

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        for item in plan.items:
            values = self._piece(item.storage_index.fqn, *self._metadata.storage_data[item.storage_index])
            for dimension, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                values = values.narrow(dimension, start, length)
            target = planner.resolve_tensor(item).detach()
            target.copy_(values)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _piece(self, name: str, file: str, chunk: ChunkStorageMetadata) -> Tensor:
        values: Tensor = self._open(file).get_tensor(name)  # type: ignore[no-untyped-call]
        if values.shape != chunk.sizes or values.dtype != self._index[name][0].properties.dtype:
            raise ValueError(f"{name} in {file} is not what the index says of it")
        return values

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False


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


def _sizes(numbers: Any) -> torch.Size:
    if not isinstance(numbers, list) or any(type(each) is not int or not 0 <= each < 2**63 for each in numbers):
        raise ValueError(f"{numbers!r:.80} is no list of sizes")
    return torch.Size(numbers)
