"""Sweep expansion: every combination of values as a whole configuration. Pure: nothing is read, run or written."""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import yaml

from dpr_core.config import strict_yaml
from dpr_core.config.base import Config, Line, assign, parse, shortened
from dpr_core.config.pipeline import ExhibitName, PipelineConfig
from dpr_core.config.training import SFTConfig
from dpr_core.errors import UsageError

MOST_POINTS = 1000
NAME_LENGTH = 60
REFERENCE = "reward.reference"
CHECKPOINTS = "sft.checkpoints"

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"(?<![^,\s])({NUMBER}):({NUMBER}):({NUMBER})(?![^,\s])")
COLONS = re.compile(r"(?<![^,\s\[])\d+(?::\d+)+(?![^,\s\]])")
"""A range without its step."""


@dataclass(frozen=True)
class Point:
    """One pipeline of an experiment."""

    name: str
    values: dict[str, Any]
    """The fields that set it apart, by their dotted names; the seed too, where it varies."""
    config: PipelineConfig


class Study(Config):
    """One recipe, what is varied in it, and what is shown of that."""

    title: Line
    """Heading of the table at the end."""

    exhibit: ExhibitName = "sweep"
    """Which exhibit is made of it."""

    config: PipelineConfig
    """The recipe."""

    over: dict[str, list[Any]]
    """Dotted fields, each with the values that it takes; every combination is a point."""

    def points(self) -> list[Point]:
        return expand(self.config.model_dump(mode="json"), self.over, self.config.name)


def expand(base: Mapping[str, Any], over: Mapping[str, Sequence[Any]], where: str) -> list[Point]:
    """Every combination of the values in `over`, as whole configurations. Equal ones are given once.

    References that SFT would not keep are added to `sft.checkpoints` of all, so that one SFT run serves them all.
    """
    _check(over, where)
    kept = with_references(base, over)
    short = short_names(over)
    points: dict[str, Point] = {}
    seen: set[str] = set()
    for combination in itertools.product(*over.values()):
        values = dict(zip(over, combination, strict=True))
        name = label(values, short)
        config = parse(PipelineConfig, assign(kept, values), f"{where}, point {name}" if name else where)
        if (whole := config.model_dump_json()) in seen:
            continue
        seen.add(whole)
        name = _free(name or "only", points)
        points[name] = Point(name, values, config)
    return list(points.values())


def read_over(assignments: Iterable[str]) -> dict[str, list[Any]]:
    """`field=1,2,3` as the field and its values: YAML scalars or lists, or a range `first:last:step`."""
    over: dict[str, list[Any]] = {}
    for assignment in assignments:
        field, equals, text = assignment.partition("=")
        shown = shortened(assignment)
        example = "--over reinforce.algorithm.gamma=0.93,0.95,1 or --over reward.reference=0.1:0.9:0.1"
        if not equals or not all(field.split(".")):
            raise UsageError(f"--over {shown}: expected field=value,value,... such as {example}")
        text = RANGE.sub(_range, text)
        try:
            values = strict_yaml.load(f"[{text}]")
            if COLONS.search(text) or not isinstance(values, list):
                raise ValueError(f"cannot be read as values with commas between; try {example}")
        except yaml.YAMLError:
            raise UsageError(f"--over {shown}: cannot be read as values with commas between; try {example}") from None
        except ValueError as error:
            raise UsageError(f"--over {shown}: {error}") from None
        if field in over:
            raise UsageError(
                f"--over {shortened(field)} is given twice; put all its values into one, with commas between"
            )
        over[field] = values
    return over


def with_references(base: Mapping[str, Any], over: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """`base` with every single reference that `over` names among `sft.checkpoints`, unless those are varied too."""
    if missing := missing_references(base, over):
        return assign(base, {CHECKPOINTS: sorted({*_checkpoints(base), *missing})})
    return dict(base)


def missing_references(base: Mapping[str, Any], over: Mapping[str, Sequence[Any]]) -> list[float]:
    """The fractions of the SFT run that `over` refers to and `base` does not keep."""
    if CHECKPOINTS in over:
        return []
    named = itertools.chain.from_iterable(v if isinstance(v, list | tuple) else [v] for v in over.get(REFERENCE, ()))
    fractions = {float(v) for v in named if isinstance(v, int | float) and 0 < v < 1}
    return sorted(fractions - set(_checkpoints(base)))


def short_names(fields: Iterable[str]) -> dict[str, str]:
    """The last part of every field, or all of it where two fields end alike."""
    every = list(dict.fromkeys(fields))
    last = [field.rpartition(".")[2] for field in every]
    return {field: end if last.count(end) == 1 else field for field, end in zip(every, last, strict=True)}


def label(values: Mapping[str, Any], short: Mapping[str, str]) -> str:
    """`gamma=0.95 seed=1`: safe in names of runs and files, and not long."""
    return " ".join(f"{short[field]}={_word(value)}" for field, value in values.items())


def _check(over: Mapping[str, Sequence[Any]], where: str) -> None:
    for field, values in over.items():
        if not values:
            raise UsageError(f"{where}: {field} is to be varied over no values at all")
        if inside := [other for other in over if other.startswith(f"{field}.")]:
            raise UsageError(f"{where}: {inside[0]} is a part of {field}, so both cannot be varied; vary one of them")
    if (number := math.prod(len(values) for values in over.values())) > MOST_POINTS:
        raise UsageError(
            f"{where}: these are {number} points, and {MOST_POINTS} is the most; vary fewer values at once"
        )


def _checkpoints(base: Mapping[str, Any]) -> list[float]:
    section = base.get("sft")
    kept = section.get("checkpoints") if isinstance(section, Mapping) else None
    return [float(f) for f in kept] if isinstance(kept, list | tuple) else list(SFTConfig().checkpoints)


def _word(value: Any) -> str:
    if isinstance(value, float):
        text = f"{value:.10g}"
    elif isinstance(value, list | tuple):
        text = "+".join(_word(part) for part in value)
    elif isinstance(value, Mapping):
        text = "+".join(f"{name}={_word(part)}" for name, part in value.items())
    else:
        text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return re.sub(r"[^\w.+=-]+", "_", text)[:NAME_LENGTH]


def _free(name: str, taken: Mapping[str, Point]) -> str:
    numbered = (f"{name} no={number}" for number in itertools.count(2))
    return name if name not in taken else next(other for other in numbered if other not in taken)


def _range(found: re.Match[str]) -> str:
    first, last, step = map(Decimal, found.groups())
    try:
        count = (last - first) / step
    except ArithmeticError:
        count = Decimal(-1)
    if not 0 <= count < MOST_POINTS:
        raise UsageError(f"{found[0]}: a range is first:last:step with at most {MOST_POINTS} values")
    return ", ".join(str(first + step * k) for k in range(int(count) + 1))
