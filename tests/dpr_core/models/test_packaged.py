"""Backbones out of Python packages, with a package index that is a function and a GGUF file of a tiny model."""

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from dpr_core.data.encoding import decode_response, encode_prompt
from dpr_core.errors import DensePathError, UsageError
from dpr_core.models import gguf_files, packaged
from dpr_core.models.checkpoints import load_model, load_tokenizer
from dpr_core.models.packaged import ORIGIN, Packaged
from tests.gguf_writer import write_gguf

TEXT = "Start at 4, add 3.\nThe answer is 2."


def wheels(folder: Path, *parts: bytes) -> dict[str, str]:
    """Wheels with a part of a GGUF file each, and their hashes by requirement."""
    found = {}
    for number, part in enumerate(parts, 1):
        path = folder / f"part{number}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"part{number}/__init__.py", "raise SystemExit('nothing of a package is run')")
            archive.writestr(f"part{number}/data/model.gguf.part0{number}", part)
        found[f"part{number}==1.0"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of a package index: `pip download` copies out of it."""
    folder = tmp_path / "index"
    folder.mkdir()

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "pip", "download"]
        assert {"--no-deps", "--only-binary=:all:"} < set(command)
        into, name = Path(command[command.index("--dest") + 1]), command[-1].partition("==")[0]
        found = list(folder.glob(f"{name}-*.whl"))
        into.mkdir()
        for wheel in found:
            (into / wheel.name).write_bytes(wheel.read_bytes())
        said = "" if found else f"WARNING: slow\nERROR: No matching distribution found for {command[-1]}\n"
        return subprocess.CompletedProcess(command, 0 if found else 1, "", said)

    monkeypatch.setattr("dpr_core.models.packaged.subprocess.run", pip)
    return folder


def work_and_folder(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("work", "made"):
        (tmp_path / name).mkdir()
    return tmp_path / "work", tmp_path / "made"


def source(of: dict[str, str], parameters: int = 1) -> Packaged:
    return Packaged(of, parameters, "Tiny", "nobody/tiny", "MIT")


@pytest.mark.integration
def test_what_comes_out_is_the_model_that_went_in(
    tiny: Any, tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny()
    write_gguf(tmp_path / "model.gguf", model, tokenizer)
    content = (tmp_path / "model.gguf").read_bytes()
    cut = len(content) // 2
    parts = wheels(index, content[:cut], content[cut:])
    given = source(parts, sum(weight.numel() for weight in model.parameters()))
    work, folder = work_and_folder(tmp_path)
    packaged.make(given, work, folder)

    loaded = load_model(folder)
    expected = dict(model.named_parameters())
    assert {name: weight.dtype for name, weight in loaded.named_parameters()} == dict.fromkeys(expected, torch.float32)
    assert all(torch.equal(weight, expected[name]) for name, weight in loaded.named_parameters())
    ids = torch.tensor([encode_prompt(tokenizer, TEXT)])
    torch.testing.assert_close(loaded(ids).logits, model.eval()(ids).logits)
    read = load_tokenizer(folder)
    assert read.eos_token_id == tokenizer.eos_token_id
    assert read(TEXT, add_special_tokens=False)["input_ids"] == tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert decode_response(read, tuple(read(TEXT, add_special_tokens=False)["input_ids"])) == TEXT

    monkeypatch.setitem(packaged.PACKAGED, "tiny", given)  # type: ignore[arg-type]
    assert packaged.is_whole(folder, "tiny")
    (folder / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"config\.json is not what it was when it was made; remove .*, and make"):
        packaged.is_whole(folder, "tiny")
    (folder / ORIGIN).unlink()
    assert not packaged.is_whole(folder, "tiny")


@pytest.mark.integration
def test_another_number_of_weights_is_not_that_model(tiny: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny()
    write_gguf(tmp_path / "model.gguf", model, tokenizer)
    with pytest.raises(DensePathError, match=r"Tiny: \d+ weights came out of the file, and 7 are expected"):
        packaged.convert(tmp_path / "model.gguf", source({}, 7), tmp_path)


def test_a_wheel_of_another_hash_is_not_read(tmp_path: Path, index: Path) -> None:
    given = source(wheels(index, b"one", b"two"))
    (index / "part2-1.0-py3-none-any.whl").write_bytes(b"no wheel at all")
    work, folder = work_and_folder(tmp_path)
    with pytest.raises(
        DensePathError, match=r"part2-1\.0-py3-none-any\.whl .* has the SHA-256 .* is expected; it is not"
    ):
        packaged.make(given, work, folder)
    assert not list(folder.iterdir())


def test_what_pip_says_is_told(tmp_path: Path, index: Path) -> None:
    given = source({"absent==1.0": "0"})
    work, folder = work_and_folder(tmp_path)
    with pytest.raises(
        DensePathError, match=r"could not download absent==1\.0: ERROR: No matching .*; `pip config list`"
    ):
        packaged.make(given, work, folder)


def test_names_that_are_known() -> None:
    with pytest.raises(UsageError, match="a backbone 'gpt5' is known; those known: smollm2-135m, gemma-3-270m"):
        packaged.packaged("gpt5")
    for each in packaged.PACKAGED.values():
        assert all(len(digest) == 64 and requirement.count("==") == 1 for requirement, digest in each.wheels.items())


def test_without_the_reader_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.import_utils.is_gguf_available", lambda: False)
    with pytest.raises(UsageError, match=r"the `gguf` package, .* pip install 'dense-path\[gguf\]'"):
        gguf_files.require_reader()
