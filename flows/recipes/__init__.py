"""The recipes that ship with the project, and configurations from files."""

import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from dpr_core.config.base import override, parse, read_yaml
from dpr_core.config.pipeline import PipelineConfig
from dpr_core.errors import UsageError

FOLDER = resources.files("flows.recipes")


def names() -> list[str]:
    """The shipped recipes."""
    return sorted(entry.name.removesuffix(".yaml") for entry in FOLDER.iterdir() if entry.name.endswith(".yaml"))


def load(recipe: str, assignments: Sequence[str] = ()) -> PipelineConfig:
    """A recipe by name, or a YAML file by path, with `field=value` changes applied."""
    return parse(PipelineConfig, override(_values(recipe), assignments), recipe)


def _values(recipe: str) -> dict[str, Any]:
    if recipe in names():
        return read_yaml((FOLDER / f"{recipe}.yaml").read_text(encoding="utf-8"), recipe)
    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml"):
        near = difflib.get_close_matches(recipe, names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"recipes: {', '.join(names())}"
        raise UsageError(f"there is no recipe {recipe!r}; {hint} (a file of your own must end in .yaml)")
    try:
        return read_yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start})") from None
