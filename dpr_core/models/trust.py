"""What is taken from a checkpoint that others made: safetensors and settings of its own, never a pickle and no code."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from dpr_core.errors import UsageError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}


def refuse_unsafe(source: str, revision: str | None) -> None:
    """Look at a local folder or a hub repository before it is loaded: transformers follows the names in its settings
    to pickles, to files elsewhere, and to code on the hub."""
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).exists() for name in (WEIGHTS, INDEX)):
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        if pickles:
            raise UsageError(
                f"{source} holds no safetensors, but {', '.join(pickles[:3])}: a pickle, which can run code as it is "
                "opened, and which is never opened here; save the model as safetensors where you trust it"
            )
    config = settings(source, "config.json", revision)
    if "transformers_weights" in config:
        raise UsageError(
            f"{source}: config.json names the weights {config['transformers_weights']!r} (transformers_weights), but "
            f"only {WEIGHTS} is read, or what {INDEX} names"
        )
    for name, value in _implementations(config):
        if "/" in value:
            raise UsageError(
                f"{source}: config.json asks for code of the hub ({name}: {value!r}), which is never run; remove {name}"
            )
    if settings(source, "adapter_config.json", revision):
        raise UsageError(f"{source} holds an adapter (adapter_config.json); merge it into its model and name that")
    for name in sorted(_weight_files(settings(source, INDEX, revision))):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UsageError(f"{source}: {INDEX} names {name!r}, which is no safetensors file of its own")


def own_code(source: str, file: str, revision: str | None) -> str:
    """A sentence on the code that a settings file asks for; empty where it asks for none."""
    asked = settings(source, file, revision).get("auto_map")
    if not asked:
        return ""
    return (
        f"{file} asks for code that comes with it (auto_map: {json.dumps(asked)[:200]}). Such code is never run "
        "(trust_remote_code is off), so what needs it is not supported"
    )


def settings(source: str, file: str, revision: str | None) -> dict[str, Any]:
    """A settings file; empty where there is none, or none that can be read, of which the loading will tell."""
    try:
        path = cached_file(
            source,
            file,
            revision=revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        found = json.loads(Path(path).read_text(encoding="utf-8")) if path is not None else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _weight_files(index: dict[str, Any]) -> set[str]:
    files = index.get("weight_map", {})
    return (
        {name if isinstance(name, str) else repr(name) for name in files.values()} if isinstance(files, dict) else set()
    )


def _implementations(settings: object) -> Iterator[tuple[str, str]]:
    """Which code computes a part of the model, such as its attention, wherever in the settings that stands."""
    if isinstance(settings, dict):
        for name, value in settings.items():
            yield from ((name, text) for text in _texts(value) if name.endswith("_implementation"))
            yield from _implementations(value)


def _texts(value: object) -> Iterator[str]:
    """For each part of a model there may be one of its own."""
    if isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, str):
        yield value


def refuse_missing_shards(folder: Path) -> None:
    """Tell of all files that a local checkpoint's index names and that are not there."""
    index = folder / INDEX
    if not index.is_file():
        return
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{index} cannot be read: {type(error).__name__}; fetch the checkpoint again") from error
    if missing := sorted(str(name) for name in named if not (folder / str(name)).is_file()):
        raise UsageError(
            f"{folder}: {len(missing)} of {len(named)} files that {INDEX} names are not there "
            f"({', '.join(missing[:3])}); fetch the checkpoint again"
        )
