"""Checkpoints made to harm whoever loads them: nothing of theirs is run, and what was wrong with them is said."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpr_core.config.model import PretrainedBackboneConfig
from dpr_core.errors import UsageError
from dpr_core.models.checkpoints import load_backbone, load_model, load_tokenizer, save


class Opens:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.file, "w")


@pytest.fixture
def folder(tiny: Callable[..., Any], tmp_path: Path) -> Path:
    """A sound checkpoint."""
    model, tokenizer = tiny("llama")
    save(model, tokenizer, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def trap(tmp_path: Path) -> Callable[[Path], Path]:
    """`trap(path)`: put a pickle there that makes the file which is returned."""
    assert pickle.loads(pickle.dumps(Opens(tmp_path / "works"))), "the trap works"

    def place(path: Path) -> Path:
        path.write_bytes(pickle.dumps(Opens(tmp_path / "ran")))
        return tmp_path / "ran"

    return place


def change(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def load(folder: Path) -> object:
    return load_backbone(PretrainedBackboneConfig(name=str(folder)))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "optimizer.pt", "model.pkl"])
def test_a_pickle_in_place_of_safetensors_is_refused_by_name(folder: Path, trap: Any, name: str) -> None:
    (folder / "model.safetensors").unlink()
    ran = trap(folder / name)
    with pytest.raises(UsageError, match=f"holds no safetensors, but {name}: a pickle"):
        load(folder)
    assert not ran.exists()


def test_a_pickle_beside_safetensors_or_with_their_name_is_not_opened(folder: Path, trap: Any) -> None:
    for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin"):
        ran = trap(folder / name)
    load(folder)
    trap(folder / "model.safetensors")
    with pytest.raises(UsageError, match="no model could be loaded"):
        load(folder)
    assert not ran.exists()


@pytest.mark.parametrize("named", ["pytorch_model.bin", "../outside.safetensors", "/outside.safetensors", ["x"]])
def test_an_index_names_safetensors_of_its_own_folder_alone(folder: Path, trap: Any, named: Any) -> None:
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    ran = trap(folder / "pytorch_model.bin")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": named}}))
    with pytest.raises(UsageError, match=r"model\.safetensors\.index\.json names .*(bin|outside|x)"):
        load(folder)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"transformers_weights": "adapter_model.bin"}, "names the weights 'adapter_model.bin'"),
        ({"_attn_implementation": "somebody/attention"}, "code of the hub .*'somebody/attention'.* never run"),
        ({"text_config": {"attn_implementation": {"": "a/b"}}}, "code of the hub .*'a/b'.* never run"),
    ],
)
def test_settings_lead_to_no_other_file_and_to_no_code(folder: Path, trap: Any, settings: Any, words: str) -> None:
    ran = trap(folder / "adapter_model.bin")
    change(folder / "config.json", **settings)
    with pytest.raises(UsageError, match=words):
        load(folder)
    assert not ran.exists()


def test_an_adapter_leads_to_no_other_model(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "../elsewhere"}')
    with pytest.raises(UsageError, match=r"an adapter \(adapter_config\.json\)"):
        load(folder)


def test_code_that_comes_with_a_checkpoint_is_never_run_and_is_named_where_it_is_needed(folder: Path) -> None:
    ran = folder / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
    change(folder / "config.json", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]})
    load(folder)  # transformers has code of its own for this kind of model
    change(folder / "config.json", model_type="evil")
    with pytest.raises(UsageError, match=r'config\.json asks for code .*"evil\.M".* never run.* not supported'):
        load_model(folder)
    (folder / "tokenizer.json").unlink()
    change(folder / "tokenizer_config.json", tokenizer_class="Evil")
    with pytest.raises(UsageError, match=r'tokenizer_config\.json asks for code .*"evil\.T".* never run'):
        load_tokenizer(folder)
    assert not ran.exists()
