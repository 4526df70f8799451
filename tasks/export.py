"""Take a model out of the store as a plain Hugging Face checkpoint."""

import shutil
from pathlib import Path

from dpr_core.errors import UsageError
from tasks.lineage import Lineage, checkpoint
from tasks.tracking import Artifact, Store


def export_checkpoint(store: Store, reference: str, folder: Path, part: str | None) -> dict[str, str]:
    """Copy a checkpoint into a new or empty folder; appears there whole or not at all."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already and not an empty folder; give another one")
    artifact = store.fetch(reference, stages=("backbone", "sft", "reward", "reinforce"))
    source = _checkpoint_folder(Lineage(store), artifact, part)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(source, unfinished)
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise UsageError(f"cannot write {folder}: {error.strerror}") from error
    return {"id": artifact.id, "checkpoint": f"{artifact.stage} {source.name}", "folder": str(folder)}


def _checkpoint_folder(lineage: Lineage, artifact: Artifact, part: str | None) -> Path:
    if artifact.stage == "reward":
        folders = {"sft": lineage.sft_folder, "ref": lineage.reference_folder}
        if part not in folders:
            raise UsageError("a reward is two models: say which with --part sft or --part ref")
        return folders[part](artifact)
    if artifact.stage == "sft":
        try:
            return checkpoint(artifact, float(part or 1.0))
        except ValueError:
            raise UsageError(f"--part {part}: a fraction of the SFT run, such as 0.50, is needed") from None
    if part is not None:
        raise UsageError(f"a {artifact.stage} artifact has one model; leave --part out")
    return artifact.path / "model" if artifact.stage == "backbone" else lineage.policy_folder(artifact)
