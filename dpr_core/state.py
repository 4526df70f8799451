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

from dpr_core.models.sharding import is_slice

State = Mapping[str, Any]
"""Nested mappings with text keys, lists, numbers, texts and tensors."""

VALUES = "state.json"
TENSORS = "state.safetensors"
_TENSOR = "$tensor"
_SLICES = "$slices"
"""In how many files there are slices of a tensor; one after another they are the tensor."""


def write(state: State, folder: Path, rank: int = 0, ranks: int = 1) -> None:
    """Write into a folder that is there. Each of several processes writes its slices of sharded tensors to a file of
    its own, and the first everything else."""
    tensors: dict[str, Tensor] = {}
    values = _taken_apart(state, "", tensors, ranks)
    mine = tensors if rank == 0 else {name: each for name, each in tensors.items() if is_slice(each)}
    save_file({name: _local(each) for name, each in mine.items()}, folder / _file(rank))
    if rank == 0:
        (folder / VALUES).write_text(json.dumps(values), encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    """What was written, by however many processes; tuples have become lists, and tensors are whole and on the CPU."""
    values = json.loads((folder / VALUES).read_text(encoding="utf-8"))
    with ExitStack() as opened:

        @cache
        def tensors(rank: int) -> Any:
            return opened.enter_context(safe_open(folder / _file(rank), framework="pt"))

        state: dict[str, Any] = _put_together(values, tensors)
    return state


def _file(rank: int) -> str:
    return f"{TENSORS}.{rank}" if rank else TENSORS


def size(state: Any) -> int:
    """The bytes of all tensors in it, which is about what writing it takes."""
    if isinstance(state, Tensor):
        return state.nbytes
    if isinstance(state, Mapping):
        return sum(map(size, state.values()))
    return sum(map(size, state)) if isinstance(state, (list, tuple)) else 0


def pack(rows: Iterable[Sequence[float]], dtype: torch.dtype = torch.int64) -> State:
    """Rows of any lengths, such as token ids, as two tensors: as lists they would be long texts."""
    listed = list(rows)
    return {
        "values": torch.tensor([value for row in listed for value in row], dtype=dtype),
        "lengths": torch.tensor([len(row) for row in listed], dtype=torch.int64),
    }


def unpack(packed: State) -> list[tuple[Any, ...]]:
    """The rows again."""
    values, rows, start = packed["values"].tolist(), [], 0
    for length in packed["lengths"].tolist():
        rows.append(tuple(values[start : start + length]))
        start += length
    return rows


def _local(tensor: Tensor) -> Tensor:
    """This process's slice, if it is sharded."""
    return (tensor.to_local() if is_slice(tensor) else tensor).contiguous()  # type: ignore[attr-defined]


def _taken_apart(value: Any, path: str, tensors: dict[str, Tensor], ranks: int) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.detach()
        return {_TENSOR: path, _SLICES: ranks} if is_slice(value) and ranks > 1 else {_TENSOR: path}
    if isinstance(value, Mapping):
        if strange := [key for key in value if not isinstance(key, str) or key == _TENSOR]:
            raise TypeError(f"{path or 'the state'}: {strange[0]!r} cannot be the name of a part")
        return {key: _taken_apart(part, f"{path}/{key}", tensors, ranks) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_taken_apart(part, f"{path}/{i}", tensors, ranks) for i, part in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{path or 'the state'}: a {type(value).__name__} cannot be kept")


def _put_together(value: Any, tensors: Callable[[int], Any]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            slices = [tensors(rank).get_tensor(value[_TENSOR]) for rank in range(value.get(_SLICES, 1))]
            return torch.cat(slices) if len(slices) > 1 else slices[0]
        return {key: _put_together(part, tensors) for key, part in value.items()}
    if isinstance(value, list):
        return [_put_together(part, tensors) for part in value]
    return value
