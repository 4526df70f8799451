import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dpr_core.state import SavedTensor, read, write


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    state: dict[str, Any] = {
        "step": 3,
        "rate": 0.1 + 0.2,
        "none": None,
        "text": "α/β",
        "flags": (True, False),
        "bad": math.inf,
        "nested": {"weights": torch.tensor([[1.5, -2.0]]), "many": [torch.tensor(7), {"deep": torch.zeros(0)}]},
        "half": torch.tensor([1.1], dtype=torch.bfloat16),
        "bytes": torch.arange(5, dtype=torch.uint8),
    }
    write(state, tmp_path)
    found = read(tmp_path)
    assert (found["step"], found["rate"], found["none"], found["text"]) == (3, 0.1 + 0.2, None, "α/β")
    assert found["flags"] == [True, False]
    assert found["bad"] == math.inf
    for ours, theirs in [
        (found["nested"]["weights"], state["nested"]["weights"]),
        (found["nested"]["many"][0], torch.tensor(7)),
        (found["nested"]["many"][1]["deep"], torch.zeros(0)),
        (found["half"], state["half"]),
        (found["bytes"], state["bytes"]),
    ]:
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_a_state_without_tensors(tmp_path: Path) -> None:
    write({"step": 1}, tmp_path)
    assert read(tmp_path) == {"step": 1}


def test_a_view_that_is_not_contiguous(tmp_path: Path) -> None:
    whole = torch.arange(6.0).reshape(2, 3)
    write({"column": whole[:, 1]}, tmp_path)
    assert read(tmp_path)["column"].tolist() == [1.0, 4.0]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"a": {"b": object()}}, "/a/b: a object cannot be kept"),
        ({1: 2}, "1 cannot be the name of a part"),
        ({"a": {"$tensor": "x"}}, "'$tensor' cannot be the name"),
    ],
)
def test_what_cannot_be_kept_is_named(tmp_path: Path, state: Any, words: str) -> None:
    with pytest.raises(TypeError) as caught:
        write(state, tmp_path)
    assert words in str(caught.value)


def test_nothing_but_json_and_safetensors_is_on_the_disk(tmp_path: Path) -> None:
    write({"w": torch.ones(2), "n": 1}, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.json", "tensors-0.safetensors"]
    assert json.loads((tmp_path / "state.json").read_text()) == {
        "values": {"w": {"$tensor": "/w"}, "n": 1},
        "tensors": {"/w": {"dtype": "float32", "shape": [2], "chunks": [["tensors-0.safetensors", [0], [2]]]}},
    }


def test_what_is_read_is_mapped_into_memory_and_stays_when_the_file_goes(tmp_path: Path) -> None:
    write({"w": torch.arange(1000.0)}, tmp_path)
    found = read(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    assert torch.equal(found["w"], torch.arange(1000.0))


def index(tmp_path: Path) -> Any:
    """Of a tensor of 4 by 2 that was written in two pieces."""
    whole = torch.arange(8.0).reshape(4, 2)
    for rank, part in enumerate(whole.split(2)):
        save_file({"/w": part.contiguous()}, tmp_path / f"tensors-{rank}.safetensors")
    chunks = [["tensors-0.safetensors", [0, 0], [2, 2]], ["tensors-1.safetensors", [2, 0], [2, 2]]]
    return {
        "values": {"w": {"$tensor": "/w"}},
        "tensors": {"/w": {"dtype": "float32", "shape": [4, 2], "chunks": chunks}},
    }


def test_of_a_tensor_in_pieces_no_more_is_read_than_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps(index(tmp_path)))
    opened: list[str] = []

    def find(name: str) -> Path:
        opened.append(name)
        return tmp_path / name

    found = read(find)["w"]
    assert isinstance(found, SavedTensor)
    assert (found.shape, opened) == (torch.Size([4, 2]), ["state.json"])
    assert torch.equal(found.like(torch.zeros(4, 2)), torch.arange(8.0).reshape(4, 2))
    assert found.like(torch.zeros(4, 2, dtype=torch.float64)).dtype == torch.float64
    assert opened == ["state.json", "tensors-0.safetensors", "tensors-1.safetensors"]
    with pytest.raises(ValueError, match="mismatch"):
        found.like(torch.zeros(3, 2))


HOSTILE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a path": (lambda w: w["chunks"][0].__setitem__(0, "../../../etc/passwd"), "no file of a state"),
    "another path": (lambda w: w["chunks"][0].__setitem__(0, "/tmp/tensors-0.safetensors"), "no file of a state"),
    "an offset": (lambda w: w["chunks"][1].__setitem__(1, [2**62, 0]), "outside of"),
    "a negative offset": (lambda w: w["chunks"][1].__setitem__(1, [-2, 0]), "no list of sizes"),
    "a size": (lambda w: w["chunks"][1].__setitem__(2, [2**70, 2]), "no list of sizes"),
    "a shape": (lambda w: w.update(shape=[2**40, 2**40]), "not the whole"),
    "a gap": (lambda w: w["chunks"].pop(), "not the whole"),
    "twice the same": (lambda w: w["chunks"].__setitem__(1, w["chunks"][0]), "not the whole"),
    "no pieces": (lambda w: w.update(chunks=[], shape=[0]), "not the whole"),
    "a type": (lambda w: w.update(dtype="load"), "no shape, type or pieces"),
    "another type": (lambda w: w.update(dtype="int32"), "is not what the index says"),
    "a text": (lambda w: w.update(shape="42"), "no shape, type or pieces"),
    "a truth": (lambda w: w.update(shape=[True, 2]), "no list of sizes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_index_is_refused(tmp_path: Path, name: str) -> None:
    change, words = HOSTILE[name]
    written = index(tmp_path)
    change(written["tensors"]["/w"])
    (tmp_path / "state.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match=words):
        read(tmp_path)["w"].like(torch.zeros(4, 2))


@pytest.mark.parametrize(
    "written",
    [
        [],
        {"values": []},
        {"values": {}},
        {"values": {"w": {"$tensor": "/w"}}, "tensors": {}},
        {"values": {"w": {"$tensor": ["x"]}}, "tensors": {}},
        {"values": {}, "tensors": [1]},
    ],
)
def test_what_is_no_state_is_refused(tmp_path: Path, written: Any) -> None:
    (tmp_path / "state.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match=r"no state|no tensor|is none"):
        read(tmp_path)
