from pathlib import Path
from typing import Any

import pytest
import torch

from dpr_core.config.base import parse
from dpr_core.config.model import PretrainedBackboneConfig
from dpr_core.errors import UsageError
from dpr_core.hashing import hash_file, hash_model
from dpr_core.models.checkpoints import fetched, load_backbone, load_model, save
from tests.gguf_writer import write_gguf


@pytest.mark.integration
def test_a_gguf_file_is_a_backbone_that_is_kept_as_safetensors(tiny: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny()
    write_gguf(tmp_path / "tiny.gguf", model, tokenizer)
    content = hash_model(tmp_path, "tiny.gguf")
    assert content == hash_file(tmp_path / "tiny.gguf")
    backbone = PretrainedBackboneConfig(name=str(tmp_path), gguf_file="tiny.gguf", dtype="float32", content=content)
    loaded, read = load_backbone(backbone)
    expected = dict(model.named_parameters())
    assert all(torch.equal(weight, expected[name]) for name, weight in loaded.named_parameters())
    text = "Start at 4, add 3."
    assert read(text, add_special_tokens=False)["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]
    save(loaded, read, tmp_path / "checkpoint")
    ids = torch.tensor([[1, 30, 31]])
    torch.testing.assert_close(load_model(tmp_path / "checkpoint")(ids).logits, model.eval()(ids).logits)
    with pytest.raises(UsageError, match=r"is no reference and no teacher: .* dpr backbone .*/tiny.gguf DIR"):
        fetched(backbone)


def test_keys_of_other_backbones_know_nothing_of_gguf() -> None:
    assert "gguf_file" not in PretrainedBackboneConfig(name="a/model").model_dump(mode="json")
    assert PretrainedBackboneConfig(name="a", gguf_file="b.gguf").model_dump(mode="json")["gguf_file"] == "b.gguf"


def test_what_is_no_gguf_file_is_told_in_a_sentence(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    with pytest.raises(UsageError, match="gguf_file: the name of a .gguf file in the folder or repository"):
        parse(PretrainedBackboneConfig, {"name": "a", "gguf_file": "../b.gguf"}, "recipe")
    backbone = PretrainedBackboneConfig(name=str(tmp_path), gguf_file="a.gguf")
    with pytest.raises(UsageError, match="cannot read .*a.gguf"):
        hash_model(tmp_path, "a.gguf")
    (tmp_path / "a.gguf").write_bytes(b"no such file")
    with pytest.raises(UsageError, match="a.gguf cannot be read as GGUF"):
        load_backbone(backbone)
