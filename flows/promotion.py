"""Promotion of a policy: a version of a registered model in MLflow, with an alias that others load it by."""

import re
from typing import Any

from dpr_core.errors import DensePathError, UsageError
from flows.export import checkpoint_folders
from tasks.artifacts.listed import ARTIFACT, model_uri
from tasks.artifacts.retrying import UnansweredError
from tasks.artifacts.store import Store
from tasks.stages.lineage import TRAINED

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,127}")
ALIAS = re.compile(r"(?!latest$|v\d+$)[a-z0-9_-]{1,64}", re.IGNORECASE)
"""MLflow keeps the names that it leaves out to itself."""


def promote(store: Store, reference: str, target: str, part: str | None) -> dict[str, Any]:
    """Register a policy as NAME and have ALIAS point at it; what was promoted before becomes no second version."""
    name, at, alias = target.rpartition("@")
    if not at or not NAME.fullmatch(name) or not ALIAS.fullmatch(alias):
        raise UsageError(
            f"{target!r}: give a name and an alias, such as word-problems@champion; a name has letters, digits, spaces "
            "and . _ -, an alias letters, digits and _ -, and is neither latest nor v1, v2, ..."
        )
    store.check_writable()
    artifact = store.fetch(reference, stages=("sft", *TRAINED))
    [folder] = checkpoint_folders(store, artifact, part)
    weights = folder.relative_to(artifact.path).as_posix()
    record, source = store.record(artifact.id), model_uri(artifact.id, weights)
    tags = {ARTIFACT: artifact.id, "dpr.digest": artifact.digest}
    note = f"{weights} of [{record.title}]({store.run_url(artifact.id)})."
    try:
        before = store.registered_models.at(name, alias)
        version = store.registered_models.promote(artifact.id, source, name, alias, tags, note)
    except UnansweredError:
        raise
    except DensePathError as error:
        raise DensePathError(
            f"{record.title} could not be promoted to {target}: {error}\n"
            "the account that MLflow is asked with needs the right to register models"
        ) from error
    moved = before is not None and before.number != version.number
    return {
        "id": artifact.id,
        "weights": weights,
        "name": name,
        "alias": alias,
        "version": version.number,
        "uri": f"models:/{name}@{alias}",
        "before": {"version": before.number, "id": before.artifact} if before is not None and moved else None,
    }
