"""The Hugging Face hub: whether a model or a dataset can be read from here, known within seconds."""

import logging
from typing import Literal

from dpr_core.errors import DensePathError, UsageError
from dpr_core.files import expanded
from dpr_core.redaction import redact

logger = logging.getLogger("dense_path")

Kind = Literal["model", "dataset"]

SECONDS = 4.0
"""For an answer, which may be asked for twice."""


def check(kind: Kind, name: str, revision: str | None, setting: str, file: str | None = None) -> None:
    """Raise what would keep a repository from being read hours from now: no network, no access, no such name.

    `setting` takes a copy on this machine in its place. `file` is needed of it; none is a dataset as `datasets` reads
    it. A copy in a cache of this machine will do where the hub cannot be reached.
    """
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    if name.startswith(("/", ".", "~")):
        if not expanded(name).is_dir():
            raise UsageError(f"there is no folder {name}; name another: --set {setting}=FOLDER")
        return
    instead = f"or give a copy on this machine: --set {setting}=..."
    try:
        url = hf_hub_url(name, file or "README.md", revision=revision, repo_type=kind)
        get_hf_file_metadata(url, timeout=SECONDS)
    except Exception as error:
        if file is None and isinstance(error, errors.EntryNotFoundError):
            # A dataset may have any files; that the hub says so shows that it can be read.
            return
        if (refused := refusal(error, kind, name, revision, file, instead)) is not None:
            raise refused from None
        reason = " ".join(redact(str(error)).split()).rstrip(".")[:200] or type(error).__name__
        if _has_copy(kind, name, revision, file):
            # Who has asked for it need not be told.
            if not isinstance(error, errors.OfflineModeIsEnabled):
                copy = "the copy of %s on this machine is used, at once with HF_HUB_OFFLINE=1"
                logger.warning(f"the hub cannot be reached (%s); {copy}", reason, name)
            return
        raise DensePathError(
            f"the hub cannot be reached for the {kind} {name} ({reason}); check the network, HF_ENDPOINT and "
            f"HF_HUB_OFFLINE, {instead}"
        ) from None


def refusal(
    error: Exception, kind: Kind, name: str, revision: str | None, file: str | None, instead: str
) -> UsageError | None:
    """The sentence for an error by which the hub refuses a repository or a file of it; none for any other error.

    `instead` is the other way on: "or give ...".
    """
    from huggingface_hub import errors

    at = f" at revision {revision}" if revision else ""
    if isinstance(error, errors.LocalEntryNotFoundError):
        return None
    if isinstance(error, errors.GatedRepoError):
        return UsageError(
            f"the {kind} {name} is gated, and this account has no access: ask for it on its page, then log in with "
            f"`hf auth login` or set HF_TOKEN, {instead}"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return UsageError(f"the {kind} {name} of the hub has no {file}{at}; check its name and revision, {instead}")
    if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError | errors.HFValidationError):
        return UsageError(
            f"the hub has no {kind} {name}{at} that can be read from here; check its name and revision, log in with "
            f"`hf auth login` or set HF_TOKEN if it is private, {instead}"
        )
    return None


def _has_copy(kind: str, name: str, revision: str | None, file: str | None) -> bool:
    if file is not None:
        from huggingface_hub import try_to_load_from_cache

        return isinstance(try_to_load_from_cache(name, file, revision=revision, repo_type=kind), str)
    from datasets.load import CachedDatasetModuleFactory

    # That copy may be of any revision.
    if revision is not None:
        return False
    try:
        CachedDatasetModuleFactory(name).get_module()
    except FileNotFoundError:
        return False
    return True
