"""Checkpoints of training state (torch.distributed.checkpoint): each process writes and reads its own share.

Tensors are in safetensors and everything else in JSON. PyTorch's planners decide who writes what, and which rows a
process needs. They are called directly, since `save` would exchange four times what is exchanged once here, and log
each tensor. The default storage pickles what it knows of the tensors; ours is in `state_storage.py`.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpr_core import distributed

if TYPE_CHECKING:
    from dpr_core.state_storage import Reader

State = Mapping[str, Any]
"""Nested mappings with text keys, lists, numbers, texts and tensors."""

VALUES = "state.json"
_TENSOR = "$tensor"

Find = Callable[[str], Path]
"""Where on this machine a file of a state can be read, which may have to be fetched first."""

Gather = Callable[[Callable[[], Any]], list[Any]]
"""What each process finds, in all of them."""


class SavedTensor:
    """A tensor in several pieces, of which a process reads what it needs."""

    def __init__(self, name: str, shape: torch.Size, reader: "Reader") -> None:
        self.name, self.shape, self._reader = name, shape, reader

    def like(self, other: Tensor) -> Tensor:
        """These values on the device of another tensor, in its dtype and sharded as it is; no more of them is read."""
        from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

        with torch.no_grad():
            target = torch.empty_like(other)
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        planner.set_up_planner({self.name: target}, self._reader.metadata, is_coordinator=True)
        self._reader.read(planner.create_local_plan(), planner)
        return target


def write(state: State, folder: Path) -> list[Path]:
    """Write into an existing folder, which need not be the same for all processes, and return this one's files. All
    call it together: each writes its shards of sharded tensors, and rank 0 everything else."""
    return prepared(state, lambda find: distributed.all_gather([find()]))(folder)


def prepared(state: State, gather: Gather) -> Callable[[Path], list[Path]]:
    """`write` in two parts: here all agree on who writes what, and what is returned each calls by itself."""
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

    from dpr_core.state_storage import indexed, write_tensors

    planner = DefaultSavePlanner(
        flatten_state_dict=False, flatten_sharded_tensors=False, dedup_save_to_lowest_rank=True
    )
    values: Any = None

    def planned() -> Any:
        nonlocal values
        tensors: dict[str, Tensor] = {}
        values = _split_tensors(state, "", tensors)
        planner.set_up_planner(tensors, is_coordinator=distributed.rank() == 0)
        return planner.create_local_plan()

    plans, metadata = planner.create_global_plan(gather(planned))

    def write_mine(folder: Path) -> list[Path]:
        files = write_tensors(planner, plans[distributed.rank()], folder, distributed.rank())
        if distributed.rank() == 0:
            files.append(folder / VALUES)
            written = {"values": values, "tensors": indexed(metadata, plans)}
            files[-1].write_text(json.dumps(written), encoding="utf-8")
        return files

    return write_mine


def read(found: Path | Find) -> dict[str, Any]:
    """Read from a folder what any number of processes wrote. Tuples have become lists, tensors are on the CPU, mapped
    into memory, and of those in pieces there is a `SavedTensor`. ValueError for what no process would have written."""
    find = cache((lambda name: found / name) if isinstance(found, Path) else found)
    written = json.loads(find(VALUES).read_text(encoding="utf-8"))
    if not isinstance(written, dict) or not isinstance(written.get("values"), dict) or "tensors" not in written:
        raise ValueError(f"{VALUES} is no state")
    tensors: Callable[[str], Any] = _no_tensors
    if written["tensors"]:
        from dpr_core.state_storage import Reader

        reader = Reader(find, written["tensors"])

        def tensors(name: str) -> Any:
            whole = reader.whole(name)
            return SavedTensor(name, reader.shape(name), reader) if whole is None else whole

    state: dict[str, Any] = _join_tensors(written["values"], tensors)
    return state


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


def _split_tensors(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.detach()
        return {_TENSOR: path}
    if isinstance(value, Mapping):
        if invalid := [key for key in value if not isinstance(key, str) or key == _TENSOR]:
            raise TypeError(f"{path or 'the state'}: {invalid[0]!r} cannot be the name of a part")
        return {key: _split_tensors(part, f"{path}/{key}", tensors) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_split_tensors(part, f"{path}/{i}", tensors) for i, part in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{path or 'the state'}: a {type(value).__name__} cannot be kept")


def _join_tensors(value: Any, tensors: Callable[[str], Any]) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            return tensors(str(value[_TENSOR]))
        return {key: _join_tensors(part, tensors) for key, part in value.items()}
    if isinstance(value, list):
        return [_join_tensors(part, tensors) for part in value]
    return value


def _no_tensors(name: str) -> Any:
    raise ValueError(f"{VALUES} lists no tensor {name!r}")
