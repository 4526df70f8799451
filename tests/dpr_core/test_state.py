import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from dpr_core.state import read, write


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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.json", "state.safetensors"]
    assert json.loads((tmp_path / "state.json").read_text()) == {"w": {"$tensor": "/w"}, "n": 1}
