"""The recipes that ship with the project, and configurations from files."""

import difflib
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from dpr_core.config.base import override, parse, read_yaml, shortened
from dpr_core.config.pipeline import PipelineConfig
from dpr_core.config.presets import with_preset
from dpr_core.config.strict_yaml import MOST_CHARACTERS
from dpr_core.errors import UsageError
from dpr_core.files import refuse_special

MOST_PARENTS = 16
LONGEST_PATH = 4096
WRITTEN = "recipe"
"""What errors call one that is not named."""
FOLDER = resources.files("flows.recipes")


def names() -> list[str]:
    """The shipped recipes."""
    return sorted(entry.name.removesuffix(".yaml") for entry in FOLDER.iterdir() if entry.name.endswith(".yaml"))


Recipe = str | Mapping[str, Any]
"""A recipe by name, a YAML file by path, or what stands in one: its text, or its settings."""


def load(recipe: Recipe, assignments: Sequence[str] = (), preset: str | None = None) -> PipelineConfig:
    """A recipe, with a preset and then `field=value` changes applied."""
    found = values(recipe) if preset is None else with_preset(values(recipe), preset)
    where = recipe if isinstance(recipe, str) and not _is_text(recipe) else WRITTEN
    return parse(PipelineConfig, override(found, assignments), where)


def values(recipe: Recipe) -> dict[str, Any]:
    """What a recipe sets, with the recipe that it extends under it; not yet validated."""
    if isinstance(recipe, Mapping):
        return _over_parent(dict(recipe), WRITTEN, Path(), ())
    if _is_text(recipe):
        return _over_parent(read_yaml(recipe, WRITTEN), WRITTEN, Path(), ())
    return _extended(recipe, Path(), ())


def _is_text(recipe: str) -> bool:
    return "\n" in recipe or ": " in recipe


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Section by section, `over` wins. An empty section, or one of another `type`, starts afresh."""
    result = dict(under)
    for name, value in over.items():
        below = result.get(name)
        if isinstance(value, dict) and value and isinstance(below, dict) and not _of_another_type(value, below):
            result[name] = merged(below, value)
        else:
            result[name] = value
    return result


def _of_another_type(section: Mapping[str, Any], below: Mapping[str, Any]) -> bool:
    return "type" in section and section["type"] != below.get("type")


def _extended(recipe: str, folder: Path, chain: tuple[str, ...]) -> dict[str, Any]:
    """`folder` has the file that extends this recipe; `chain` has the recipes that led to it."""
    where, file = _find(recipe, folder, chain)
    if where in chain:
        raise UsageError(f"recipes extend each other in a circle: {' -> '.join((*chain, where))}")
    if len(chain) > MOST_PARENTS:
        raise UsageError(f"{chain[0]} extends a recipe that extends another, and so on more than {MOST_PARENTS} times")
    return _over_parent(read_yaml(_read(file, where), where), where, Path(where).parent, (*chain, where))


def _over_parent(own: dict[str, Any], where: str, folder: Path, chain: tuple[str, ...]) -> dict[str, Any]:
    parent = own.pop("extends", None)
    if parent is None:
        return own
    if not isinstance(parent, str):
        raise UsageError(f"{where}: extends: the name of a recipe or a .yaml file is expected (got {parent!r})")
    return merged(_extended(parent, folder, chain), own)


def _find(recipe: str, folder: Path, chain: Sequence[str]) -> tuple[str, Traversable | Path]:
    """The name or path of a recipe, and its file."""
    if recipe in names():
        return recipe, FOLDER / f"{recipe}.yaml"
    if len(recipe) > LONGEST_PATH:
        raise UsageError(f"there is no recipe of a name of {len(recipe)} characters: {shortened(recipe)}")
    path = Path(os.path.normpath(folder / recipe))
    if path.suffix not in (".yaml", ".yml"):
        near = difflib.get_close_matches(recipe, names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"recipes: {', '.join(names())}"
        source = f"{chain[-1]}: extends: " if chain else ""
        raise UsageError(f"{source}there is no recipe {recipe!r}; {hint} (a file of your own must end in .yaml)")
    return str(path), path


def _read(file: Traversable | Path, where: str) -> str:
    if isinstance(file, Path):
        refuse_special(file)
    try:
        with file.open("rb") as stream:
            content = stream.read(MOST_CHARACTERS + 1)
        if len(content) > MOST_CHARACTERS:
            raise UsageError(f"{where} is longer than {MOST_CHARACTERS} bytes, the most that a recipe may have")
        return content.decode()
    except OSError as error:
        raise UsageError(f"cannot read {where}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is not UTF-8 text (byte {error.start})") from None
