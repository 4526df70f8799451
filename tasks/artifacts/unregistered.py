"""Artifacts that the database does not know, as after an older `mlflow.db` was restored; and their re-registration."""

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpr_core.hashing import HashCache
from tasks.artifacts.identity import Manifest, RunEntry, canonical_json, check_files
from tasks.artifacts.payloads import manifest_text
from tasks.artifacts.run_records import ID, MANIFEST, NOTE_LIMIT, PAYLOAD, results_text, run_name, split_tag

if TYPE_CHECKING:
    from tasks.artifacts.mlflow_client import MlflowClient

logger = logging.getLogger("dense_path")

UNKNOWN_TO_MLFLOW = "whole, but not in the database; dpr verify --all --register takes it back in"


@dataclass(frozen=True)
class Unregistered:
    """A payload with a manifest, of which MLflow has no finished run."""

    id: str
    root: Path
    manifest: Manifest
    in_database: bool
    """Whether there is a run, which was not finished yet when the database was saved."""

    def problems(self) -> list[str]:
        """Every reason not to take it back in."""
        return check_files(self.root / PAYLOAD, self.manifest, HashCache())


def whole_manifest(root: Path) -> Manifest | None:
    """The manifest in a run's folder, if there is one that is one; OSError where that cannot be known."""
    try:
        return Manifest.from_json(manifest_text(root))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None


def find(artifacts: Path, finished: Collection[str], runs: Collection[str]) -> Iterator[Unregistered]:
    """Those among the folders of a home that are not of `finished` runs; `runs` are all that MLflow has."""
    for folder in sorted(artifacts.iterdir()):
        if ID.fullmatch(folder.name) and folder.name not in finished:
            try:
                manifest = whole_manifest(folder / "artifacts")
            except OSError as error:
                logger.warning("%s is left alone: it cannot be read (%s)", folder, error.strerror)
                continue
            if manifest is not None:
                yield Unregistered(folder.name, folder / "artifacts", manifest, folder.name in runs)


def register(client: "MlflowClient", experiment: str, owner: str, lost: Unregistered) -> None:
    """Make the run of an artifact again, under its ID. Digest and status come last, as when it was published."""
    manifest = lost.manifest
    written = int((lost.root / MANIFEST).stat().st_mtime * 1000)
    # An earlier version's manifest does not say what the artifact was called.
    run: RunEntry = manifest.run or {
        "name": manifest.stage,
        "parent": None,
        "owner": owner,
        "description": "",
        "started": written,
        "ended": written,
        "config": manifest.config,
        "results": {},
        "metrics": {},
        "last_step": 0,
        "files": [],
    }
    tags = {
        "dpr.reason": "",
        **run_tags(
            stage=manifest.stage,
            name=run["name"],
            version=manifest.stage_version,
            key=manifest.key,
            owner=run["owner"],
            description=run["description"],
            inputs={role: entry["id"] for role, entry in manifest.inputs.items()},
            config=run["config"],
            parent=run["parent"],
        ),
        **split_tag("dpr.results", results_text(run["results"])),
    }
    if lost.in_database:
        for tag, value in tags.items():
            client.set_tag(lost.id, tag, value)
    else:
        client.insert_run(experiment, lost.id, run["started"], lost.root, tags)
    client.update_run(lost.id, name=run_name(manifest.stage, run["name"]))
    client.log_params(lost.id, run["config"])
    client.log_metrics(lost.id, [(n, value, run["ended"], run["last_step"]) for n, value in run["metrics"].items()])
    if digest := manifest.run_digest():
        client.set_tag(lost.id, "dpr.run", digest)
    client.set_tag(lost.id, "dpr.digest", manifest.digest())
    client.set_terminated(lost.id, "FINISHED", run["ended"])


def run_tags(
    *,
    stage: str,
    name: str,
    version: int,
    key: str,
    owner: str,
    description: str,
    inputs: Mapping[str, str],
    config: Mapping[str, Any],
    parent: str | None,
) -> dict[str, str]:
    """The tags that the run of a stage begins with."""
    return {
        "dpr.stage": stage,
        "dpr.name": name,
        "dpr.version": str(version),
        "dpr.key": key,
        "dpr.owner": owner,
        "mlflow.note.content": description[:NOTE_LIMIT],
        **split_tag("dpr.inputs", canonical_json(dict(inputs))),
        **split_tag("dpr.config", canonical_json(dict(config))),
        **({"mlflow.parentRunId": parent} if parent else {}),
    }
