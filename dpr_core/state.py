"""Resumable training state as files: tensors in safetensors, sharded ones by rank, everything else in JSON."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dpr_core.distributed import is_dtensor

State = Mapping[str, Any]
"""Nested mappings with text keys, lists, numbers, texts and tensors."""

VALUES = "state.json"
TENSORS = "state.safetensors"
_TENSOR = "$tensor"
_SLICES = "$slices"
"""The number of files that hold shards of a tensor; concatenated in order they are the tensor."""


def write(state: State, folder: Path, rank: int = 0, ranks: int = 1) -> None:
    """Write into an existing folder. Each process writes its shards of sharded tensors to a file of its own, and rank 0
    everything else."""
    tensors: dict[str, Tensor] = {}
    values = _split_tensors(state, "", tensors, ranks)
    mine = tensors if rank == 0 else {name: each for name, each in tensors.items() if is_dtensor(each)}
    save_file({name: _local(each) for name, each in mine.items()}, folder / _file(rank))
    if rank == 0:
        (folder / VALUES).write_text(json.dumps(values), encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    """Read what any number of processes wrote; tuples have become lists, and tensors are unsharded and on the CPU."""
    values = json.loads((folder / VALUES).read_text(encoding="utf-8"))
    with ExitStack() as stack:

        @cache
        def tensors(rank: int) -> Any:
            return stack.enter_context(safe_open(folder / _file(rank), framework="pt"))

        state: dict[str, Any] = _join_tensors(values, tensors)
    return state


def _file(rank: int) -> str:
    return f"{TENSORS}.{rank}" if rank else TENSORS


def size(state: Any) -> int:
    """The bytes of all tensors, which is about the size on disk."""
    if isinstance(state, Tensor):
        return state.nbytes
    if isinstance(state, Mapping):
        return sum(map(size, state.values()))
    return sum(map(size, state)) if isinstance(state, (list, tuple)) else 0


def pack(rows: Iterable[Sequence[float]], dtype: torch.dtype = torch.int64) -> State:
    """Ragged rows, such as token ids, as two tensors, which are far smaller than JSON lists."""
    listed = list(rows)
    return {
        "values": torch.tensor([value for row in listed for value in row], dtype=dtype),
        "lengths": torch.tensor([len(row) for row in listed], dtype=torch.int64),
    }


def unpack(packed: State) -> list[tuple[Any, ...]]:
    """The rows that `pack` packed."""
    values, rows, start = packed["values"].tolist(), [], 0
    for length in packed["lengths"].tolist():
        rows.append(tuple(values[start : start + length]))
        start += length
    return rows


def _local(tensor: Tensor) -> Tensor:
    """This process's shard of a DTensor; any other tensor as it is."""
    return (tensor.to_local() if is_dtensor(tensor) else tensor).contiguous()  # type: ignore[attr-defined]


def _split_tensors(value: Any, path: str, tensors: dict[str, Tensor], ranks: int) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.detach()
        return {_TENSOR: path, _SLICES: ranks} if is_dtensor(value) and ranks > 1 else {_TENSOR: path}
    if isinstance(value, Mapping):
        if invalid := [key for key in value if not isinstance(key, str) or key == _TENSOR]:
            raise TypeError(f"{path or 'the state'}: {invalid[0]!r} cannot be the name of a part")
        return {key: _split_tensors(part, f"{path}/{key}", tensors, ranks) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_split_tensors(part, f"{path}/{i}", tensors, ranks) for i, part in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{path or 'the state'}: a {type(value).__name__} cannot be kept")


def _join_tensors(value: Any, tensors: Callable[[int], Any]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            shards = [tensors(rank).get_tensor(value[_TENSOR]) for rank in range(value.get(_SLICES, 1))]
            return torch.cat(shards) if len(shards) > 1 else shards[0]
        return {key: _join_tensors(part, tensors) for key, part in value.items()}
    if isinstance(value, list):
        return [_join_tensors(part, tensors) for part in value]
    return value
