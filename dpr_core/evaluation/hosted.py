"""The file of a benchmark: on this machine, or a file of a dataset on the Hugging Face hub."""

from pathlib import Path
from typing import Any

from dpr_core import hub
from dpr_core.config.gold import GoldBenchmarkConfig
from dpr_core.config.official import HostedFileConfig
from dpr_core.errors import DensePathError
from dpr_core.evaluation.rows import of_benchmark_file
from dpr_core.hashing import hash_file


def local_file(config: HostedFileConfig) -> Path:
    """The local file, or a copy of the hub's in the hub's own cache."""
    if config.path is not None:
        return of_benchmark_file(config.path, _found)
    from huggingface_hub import hf_hub_download

    repository, file = on_hub(config)
    try:
        return Path(hf_hub_download(repository, file, repo_type="dataset", revision=config.revision))
    except Exception as error:
        raise _explained(config, error) from None


def _found(path: Path) -> Path:
    path.stat()
    return path


def content_hash(config: HostedFileConfig) -> str:
    """The hash of the file as it is now."""
    return of_benchmark_file(config.path or str(local_file(config)), hash_file)


def missing(config: HostedFileConfig) -> str | None:
    """What has to be fetched from the hub before the questions can be read."""
    from huggingface_hub import try_to_load_from_cache

    if config.path is not None:
        return None
    repository, file = on_hub(config)
    here = try_to_load_from_cache(repository, file, revision=config.revision, repo_type="dataset")
    return None if isinstance(here, str) else f"{file} of the dataset {repository} is not on this machine yet"


def on_hub(config: HostedFileConfig) -> tuple[str, str]:
    """The dataset and its file, which a config without `path` names."""
    assert config.repository is not None
    assert config.file is not None
    return config.repository, config.file


def setting(config: Any) -> str:
    """What takes a local file in place of the hub's, where the benchmark is called by its type."""
    place = "capabilities" if isinstance(config, GoldBenchmarkConfig) else "benchmarks"
    return f"evaluation.{place}.{config.type}.path"


def _explained(config: Any, error: Exception) -> DensePathError:
    from huggingface_hub import errors

    detail = " ".join(str(error).split()).rstrip(".")[:300]
    instead = f"or give a local file: --set {setting(config)}=FILE, for `dpr benchmark judge` --questions FILE"
    if (refused := hub.refusal(error, "dataset", config.repository, config.revision, config.file, instead)) is not None:
        return refused
    place = f"{config.file} of the dataset {config.repository}"
    if isinstance(error, errors.LocalEntryNotFoundError | ConnectionError):
        return DensePathError(
            f"the hub cannot be reached for {place} ({detail}); check the network and HF_HUB_OFFLINE, {instead}"
        )
    return DensePathError(f"{place} cannot be read: {type(error).__name__}: {detail}; try again, {instead}")
