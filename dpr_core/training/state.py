"""Where a training loop stands, as files: tensors in safetensors, everything else in JSON."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

State = Mapping[str, Any]
"""Nested mappings with text keys, lists, numbers, texts and tensors."""

VALUES = "state.json"
TENSORS = "state.safetensors"
_TENSOR = "$tensor"


def write(state: State, folder: Path) -> None:
    """Write both files into a folder that is there."""
    tensors: dict[str, Tensor] = {}
    values = _taken_apart(state, "", tensors)
    save_file(tensors, folder / TENSORS)
    (folder / VALUES).write_text(json.dumps(values), encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    """What was written; tuples have become lists, and tensors are on the CPU."""
    values = json.loads((folder / VALUES).read_text(encoding="utf-8"))
    with safe_open(folder / TENSORS, framework="pt") as tensors:
        state: dict[str, Any] = _put_together(values, tensors)
    return state


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


def _taken_apart(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.detach().contiguous()
        return {_TENSOR: path}
    if isinstance(value, Mapping):
        if strange := [key for key in value if not isinstance(key, str) or key == _TENSOR]:
            raise TypeError(f"{path or 'the state'}: {strange[0]!r} cannot be the name of a part")
        return {key: _taken_apart(part, f"{path}/{key}", tensors) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_taken_apart(part, f"{path}/{i}", tensors) for i, part in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{path or 'the state'}: a {type(value).__name__} cannot be kept")


def _put_together(value: Any, tensors: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            return tensors.get_tensor(value[_TENSOR])
        return {key: _put_together(part, tensors) for key, part in value.items()}
    if isinstance(value, list):
        return [_put_together(part, tensors) for part in value]
    return value
