"""Take a model out of the store as a plain Hugging Face checkpoint."""

import shutil
import stat
import tempfile
from pathlib import Path

from dpr_core.errors import UsageError
from tasks.lineage import Lineage, checkpoint
from tasks.tracking import Artifact, Store


def export_checkpoint(store: Store, reference: str, folder: Path, part: str | None) -> dict[str, str]:
    """Copy a checkpoint into a new or empty folder; appears there whole or not at all."""
    target = folder.resolve()
    if target == Path.cwd():
        raise UsageError(f"{folder} is the folder that you are in; give the name of a new one")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{folder} is there already and not an empty folder; give another one")
    artifact = store.fetch(reference, stages=("backbone", "sft", "reward", "reinforce"))
    source = _checkpoint_folder(Lineage(store), artifact, part)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".dpr-export-", dir=target.parent) as beside:
            copy = Path(beside) / "checkpoint"
            copy.mkdir(mode=0o755)
            mode = copy.stat().st_mode
            shutil.copytree(source, copy, dirs_exist_ok=True, copy_function=shutil.copyfile)
            copy.chmod(stat.S_IMODE(mode))
            copy.rename(target)
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror or error}") from error
    return {"id": artifact.id, "checkpoint": f"{artifact.stage} {source.name}", "folder": str(folder)}


def _checkpoint_folder(lineage: Lineage, artifact: Artifact, part: str | None) -> Path:
    if artifact.stage == "reward":
        folders = {"sft": lineage.sft_folder, "ref": lineage.reference_folder}
        if part not in folders:
            raise UsageError("a reward is two models: say which with --part sft or --part ref")
        return folders[part](artifact)
    if artifact.stage == "sft":
        try:
            fraction = float(part or 1.0)
        except ValueError:
            fraction = 0.0
        if not 0 < fraction <= 1:
            raise UsageError(f"--part {part}: a fraction of the SFT run, such as 0.50, is needed")
        return checkpoint(artifact, fraction)
    if part is not None:
        raise UsageError(f"a {artifact.stage} artifact has one model; leave --part out")
    return artifact.path / "model" if artifact.stage == "backbone" else lineage.policy_folder(artifact)
