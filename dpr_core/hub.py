"""The Hugging Face hub: whether a repository can be read from here, known within seconds, and uploads to one."""

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dpr_core.errors import DensePathError, UsageError
from dpr_core.files import expanded
from dpr_core.redaction import redact

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger("dense_path")

Kind = Literal["model", "dataset"]

SECONDS = 4.0
"""For an answer, which may be asked for twice."""

PAUSES = (2.0, 10.0)
"""Seconds before a commit is tried again."""


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


def upload(folder: Path, repository: str, *, message: str, private: bool, branch: str | None, update: bool) -> str:
    """Put the files of a folder into a model repository, which is made; returns the address of the commit. `update`
    takes one that is there, whose weights these replace."""
    from huggingface_hub import HfApi, errors

    api = HfApi(library_name="dense-path")
    made = ""
    try:
        made = api.create_repo(repository, private=private or None, exist_ok=update).repo_id
        if private and update and not api.model_info(made).private:
            raise UsageError(f"the repository {made} is there and public; leave --private out, or name a new one")
        if branch is not None:
            api.create_branch(made, branch=branch, exist_ok=True)
        return _committed(api, folder, made, message, branch)
    except UsageError:
        raise
    except errors.HFValidationError:
        raise UsageError(f"{repository!r} is no name of a repository; give one such as your-name/dpr-model") from None
    except Exception as error:
        raise _not_uploaded(error, made or repository, begun=bool(made)) from None


def _committed(api: "HfApi", folder: Path, repository: str, message: str, branch: str | None) -> str:
    """Tried again where the hub is away for a while: single requests are by the library, a commit is not."""
    for seconds in (*PAUSES, None):
        try:
            commit = api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message=message,
                revision=branch,
                # What these files would not replace, and a model would be read by.
                delete_patterns=["model*.safetensors*", "adapter_*", "chat_template*"],
            )
            return str(commit.commit_url)
        except Exception as error:
            if seconds is None or (_status(error) or 500) not in (429, *range(500, 600)):
                raise
            logger.warning("the hub did not take the commit; tried again in %g s", seconds)
            time.sleep(seconds)
    raise AssertionError


def _not_uploaded(error: Exception, repository: str, *, begun: bool) -> DensePathError:
    status = _status(error)
    if status == 409 and not begun:
        return UsageError(f"the hub has a repository {repository} already; name another, or push into it with --update")
    if status == 401:
        return UsageError(
            "the hub does not know who uploads; log in with `hf auth login`, or set HF_TOKEN to a token that may write"
        )
    if status == 403:
        return UsageError(
            f"this account's token may not write to {repository}; take one with write access to it, or another name"
        )
    reason = " ".join(redact(str(error)).split()).rstrip(".")[:300] or type(error).__name__
    then = (
        "what was sent is kept, go on with --update" if begun else "check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
    )
    return DensePathError(f"{repository} could not be uploaded ({reason}); {then}")


def _status(error: Exception) -> int | None:
    """What the hub answered, if anything."""
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status
