"""Base classes and parsing of settings: strict, frozen pydantic models, overrides, and errors with the nearest name."""

import copy
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
    ValidationError,
    field_validator,
)
from pydantic.fields import FieldInfo

from dpr_core.config import strict_yaml
from dpr_core.errors import UsageError
from dpr_core.redaction import places_of_keys, shown_value

MOST_PROBLEMS = 20
MOST_CHANGES = 1000
MOST_SHOWN = 100
"""Characters of a name or a value that an error quotes."""
MOST_MEANT = 3
"""Settings elsewhere that an error offers for a name that is unknown."""


class Config(BaseModel):
    """Strict: 3 is no text, "3" and true and 3.0 are no whole numbers, "no" is neither true nor false."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    def notes(self) -> dict[str, str]:
        """What is to be said of the values that fields have, by name."""
        return {}

    @field_validator("*")
    @classmethod
    def _can_be_written(cls, value: Any) -> Any:
        _refuse_surrogates(value)
        return value


C = TypeVar("C", bound=Config)

FromList = Strict(False)
"""For a tuple, which YAML and JSON write as a list; what is in it stays strict."""

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""A name that is safe in files, tables and commands."""


def _without_credentials(url: str) -> str:
    if "@" in url or "?" in url:
        raise ValueError("an address must not hold a name, a password or a key; use the key's environment variable")
    return url


def _variable_name(name: str) -> str:
    # Somebody who pastes the key itself here must not read it again in the error.
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", name):
        raise ValueError("this is the name of an environment variable, such as OPENAI_API_KEY, not a key")
    return name


def _refuse_surrogates(value: Any) -> None:
    """No file and no database takes half of a character."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("this text is not valid Unicode") from None
    elif isinstance(value, dict):
        for part in (*value, *value.values()):
            _refuse_surrogates(part)
    elif isinstance(value, list | tuple):
        for part in value:
            _refuse_surrogates(part)


def _one_line(text: str) -> str:
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError("control characters, line breaks among them, are not allowed here")
    return text


Line = Annotated[str, StringConstraints(max_length=4096), AfterValidator(_one_line)]
"""The name of a file, a model or a dataset, or a heading."""


def _zero_or_not_tiny(temperature: float) -> float:
    # Logits divided by less overflow, and what is drawn from them is no sample.
    if 0 < temperature < LEAST_TEMPERATURE:
        raise ValueError(f"a temperature is at least {LEAST_TEMPERATURE}, or 0, which is greedy (got {temperature:g})")
    return temperature


LEAST_TEMPERATURE = 0.01
Temperature = Annotated[float, Field(ge=0, le=100), AfterValidator(_zero_or_not_tiny)]
"""Of sampling."""

Address = Annotated[Line, AfterValidator(_without_credentials)]
"""Of a server; it is written down and shown."""

Variable = Annotated[str, AfterValidator(_variable_name)]
"""The name of an environment variable that holds a key."""


def type_if_unset(kind: str) -> BeforeValidator:
    """For a union with a default: settings that do not say their `type` are of that kind."""
    return BeforeValidator(lambda value: {"type": kind, **value} if isinstance(value, dict) else value)


class StageConfig(Config):
    """What every stage has. `execution` says how the work is done, never what comes out: it is no part of identity."""

    not_identity: ClassVar[tuple[str, ...]] = ("execution",)

    unless_changed: ClassVar[Mapping[str, Any]] = {}
    """Fields that are no part of identity at these values, which are what there was before there was a choice."""

    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of everything random in this stage."""

    def identity(self) -> dict[str, Any]:
        """The fields that decide the result, as plain JSON values."""
        return self.identity_in(self.model_dump(mode="json"))

    @classmethod
    def identity_in(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Of all settings of such a stage, as plain JSON values, those that decide the result."""
        unchanged = cls.unless_changed
        return {
            name: value
            for name, value in values.items()
            if name not in cls.not_identity and not (name in unchanged and value == unchanged[name])
        }


def parse(model: type[C], values: Mapping[str, Any], where: str) -> C:
    """Validate `values`, or raise a UsageError: a line for each field, what is wrong and the nearest right name."""
    try:
        config = model.model_validate(dict(values))
    except ValidationError as error:
        problems = error.errors(include_url=False)
        lines = [_explain(model, values, where, problem) for problem in problems[:MOST_PROBLEMS]]
        if len(problems) > MOST_PROBLEMS:
            lines.append(f"{where}: and {len(problems) - MOST_PROBLEMS} more")
        raise UsageError("\n".join(lines)) from None
    for field in places_of_keys(config.model_dump()):
        raise UsageError(
            f"{where}: {field}: this looks like a key, and settings are stored and shown; a key is given in an "
            "environment variable"
        )
    return config


def _explain(model: type[Config], values: Mapping[str, Any], where: str, error: Mapping[str, Any]) -> str:
    loc = list(error["loc"])
    plain = _without_union_tags(values, loc)
    field = shortened(".".join(str(part) for part in plain))
    label = f"{where}: {field}" if field else where
    message = str(error["msg"])
    if error["type"] == "extra_forbidden":
        names = sorted(_siblings(model, loc[:-1]))
        near = _elsewhere(model, plain, error["input"]) or difflib.get_close_matches(
            str(loc[-1])[:MOST_SHOWN], names, n=1, cutoff=0.5
        )
        hint = f"did you mean {' or '.join(near)}?" if near else f"known here: {', '.join(names)}"
        return f"{label}: no such field; {hint}"
    if error["type"] == "missing":
        return f"{label}: this field is required"
    if error["type"] == "union_tag_invalid":
        tag, known = shown_value(error["ctx"]["tag"]), error["ctx"]["expected_tags"]
        return f"{label}.type: unknown type {tag}; known: {known}"
    if error["type"] == "union_tag_not_found":
        return f"{label}: a `type` is needed to say which kind this is"
    if error["type"] == "value_error":
        return f"{label}: {error['ctx']['error']!s}"
    message = EXPECTED.get(error["type"]) or f"{message[0].lower()}{message[1:]}"
    return f"{label}: {message} (got {shown_value(error['input'])})"


EXPECTED = {
    "int_type": "a whole number is expected, without quotes, point or exponent",
    "float_type": "a number is expected, without quotes",
    "bool_type": "true or false is expected",
    "string_unicode": "this text is not valid Unicode",
    "string_type": "text is expected; put it in quotes",
    "tuple_type": "a list is expected, in brackets",
    "list_type": "a list is expected, in brackets",
    "dict_type": "a section of settings is expected",
    "model_type": "a section of settings is expected",
    "model_attributes_type": "a section of settings is expected",
}


def shortened(text: str) -> str:
    """For an error: what a user gave may have any length."""
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _without_union_tags(values: Any, loc: list[Any]) -> list[Any]:
    """Pydantic names the chosen member of a union inside the location; a user never wrote that part."""
    path = []
    node = values
    for i, part in enumerate(loc):
        if isinstance(node, Mapping):
            if part not in node and node.get("type", part) == part and i < len(loc) - 1:
                continue
            node = node.get(part)
        elif isinstance(node, list | tuple) and isinstance(part, int) and part < len(node):
            node = node[part]
        elif i > 0:
            # Below a plain value there is only the name of the union member that it was tried as.
            break
        path.append(part)
    return path


def _siblings(model: type[Config], loc: list[Any]) -> list[str]:
    members = [model]
    for part in loc:
        step: list[type[Config]] = []
        for member in members:
            field = member.model_fields.get(str(part))
            if field is not None:
                step += _config_types(field.annotation)
        if step:
            members = step
        else:
            tagged = [m for m in members if part in get_args(getattr(m.model_fields.get("type"), "annotation", None))]
            members = tagged or members
    return [name for member in members for name in member.model_fields]


def _elsewhere(model: type[Config], loc: list[Any], value: Any) -> list[str]:
    """The settings that an unknown name may have meant, by full paths: those that end as it does, if they are few."""
    given = [str(part) for part in loc]
    while isinstance(value, Mapping) and len(value) == 1 and len(given) < strict_yaml.MOST_LEVELS:
        [(name, value)] = value.items()
        given.append(str(name))
    known = [path for path in paths(model) if path != tuple(given)]
    for start in range(len(given)):
        tail = tuple(given[start:])
        if found := [path for path in known if path[-len(tail) :] == tail]:
            section = difflib.get_close_matches(given[0], [path[0] for path in found], n=1) if start else []
            beside = [path for path in found if path[0] in section] or found
            return [".".join(path) for path in beside] if len(beside) <= MOST_MEANT else []
    return []


@cache
def paths(model: type[Config]) -> list[tuple[str, ...]]:
    """Every setting of a model by its path, but for what users name themselves."""
    found: dict[tuple[str, ...], None] = {}
    for name, field in model.model_fields.items():
        found[name,] = None
        if _names_of_users(field.annotation):
            continue
        for section in _config_types(field.annotation):
            found |= {(name, *path): None for path in paths(section)}
    return list(found)


def _names_of_users(annotation: Any) -> bool:
    return get_origin(annotation) is dict or any(map(_names_of_users, get_args(annotation)))


def _config_types(annotation: Any) -> list[type[Config]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Config) else []
    return [found for argument in get_args(annotation) for found in _config_types(argument)]


def read_yaml(text: str, where: str) -> dict[str, Any]:
    """Parse a YAML mapping, or say where it is broken."""
    try:
        values = strict_yaml.load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: not valid YAML: {strict_yaml.problem(error)}") from None
    except strict_yaml.RefusedError as error:
        raise UsageError(f"{where}: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{where}: a mapping of settings is expected, not {type(values).__name__}")
    return values


def override(values: Mapping[str, Any], assignments: Iterable[str], where: str = "--set") -> dict[str, Any]:
    """Apply `a.b.c=value` assignments, values read as YAML; none may undo another."""
    changes: dict[str, Any] = {}
    for assignment in assignments:
        if len(changes) == MOST_CHANGES:
            raise UsageError(f"{where}: {MOST_CHANGES} changes are the most; write a recipe")
        path, equals, text = assignment.partition("=")
        # The value may be a key.
        shown = f"{shortened(path)}=..." if equals else shortened(assignment)
        if not equals or not all(path.split(".")):
            raise UsageError(f"{where} {shown}: expected field=value, such as --set reinforce.algorithm.gamma=0.95")
        try:
            value = strict_yaml.load(text)
        except yaml.YAMLError:
            value = text
        except strict_yaml.RefusedError as error:
            raise UsageError(f"{where} {shown}: {error}") from None
        for other in changes:
            if path == other:
                raise UsageError(f"{where} {shortened(path)} is given twice; keep one of them")
            if other.startswith(f"{path}.") or (path.startswith(f"{other}.") and _holds(changes[other], path, other)):
                raise UsageError(
                    f"{where} {shortened(other)} and then {where} {shortened(path)}: the second undoes the first; "
                    "keep one of them"
                )
        changes[path] = value
    return assign(values, changes)


def _holds(section: Any, path: str, root: str) -> bool:
    """Whether the section that was set at `root` sets `path` already, or something else than a section above it."""
    for part in path.removeprefix(f"{root}.").split("."):
        if not isinstance(section, dict):
            return True
        if part not in section:
            return False
        section = section[part]
    return True


def assign(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Set fields by their dotted names. A `type` is set first, and starts its section afresh."""
    result: dict[str, Any] = copy.deepcopy(dict(values))
    for path in sorted(changes, key=lambda path: not path.endswith(".type")):
        *parents, last = path.split(".")
        if len(parents) >= strict_yaml.MOST_LEVELS:
            raise UsageError(f"{shortened(path)}: there is no setting at a depth of {len(parents) + 1}")
        node = result
        for part in parents:
            child = node.get(part)
            if not isinstance(child, dict):
                child = node[part] = {}
            node = child
        if last == "type" and node.get("type") != changes[path]:
            node.clear()
        node[last] = changes[path]
    return result


def commented_yaml(config: Config) -> str:
    """Every field with its value, and what it means as a comment above it."""
    return "\n".join(_yaml_lines(config, config.model_dump(mode="json"), 0)) + "\n"


def _yaml_lines(config: Config, plain: Mapping[str, Any], depth: int) -> Iterator[str]:
    pad, notes = "  " * depth, config.notes()
    for name, field in type(config).model_fields.items():
        if name not in plain:
            continue
        value = getattr(config, name)
        yield from (f"{pad}# {line}" for line in (*_comment(field), *notes.get(name, "").splitlines()))
        if isinstance(value, Config):
            yield f"{pad}{name}:"
            yield from _yaml_lines(value, plain[name], depth + 1)
        elif isinstance(value, dict) and value and all(isinstance(v, Config) for v in value.values()):
            yield f"{pad}{name}:"
            for key, item in value.items():
                yield f"{pad}  {strict_yaml.dump(key)}:"
                yield from _yaml_lines(item, plain[name][key], depth + 2)
        else:
            yield f"{pad}{name}: {strict_yaml.dump(plain[name])}"


def _comment(field: FieldInfo) -> list[str]:
    lines = (field.description or "").strip().splitlines()
    annotation = field.annotation
    if getattr(annotation, "__origin__", None) is Literal and len(get_args(annotation)) > 1:
        lines.append("One of: " + ", ".join(str(choice) for choice in get_args(annotation)))
    return [line.strip() for line in lines if line.strip()]
