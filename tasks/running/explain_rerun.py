"""Explanation of a cache miss: the settings and inputs that differ from the nearest artifact in the store."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpr_core.config.base import StageConfig
from tasks.artifacts.run_records import Record, flatten

FORCED = "it was asked for by force"
NEVER = "never ran"
UNEXPLAINED = "no finished artifact has this key"
LONGEST_VALUE = 60
_UNSET = object()


@dataclass(frozen=True)
class RequestedStage:
    """A stage that is to run. `digests` lacks the inputs that are still to be made themselves."""

    name: str
    """Its name in the pipeline, which tells stages of one kind apart: each policy's answers, say."""
    stage: str
    version: int
    config: StageConfig
    digests: Mapping[str, str]
    roles: frozenset[str]


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`field: old -> new` for every field that differs, with dotted names."""
    before, after = dict(flatten(old)), dict(flatten(new))
    names = [*after, *(name for name in before if name not in after)]
    pairs = [(name, before.get(name, _UNSET), after.get(name, _UNSET)) for name in names]
    return [f"{name}: {_short(was)} -> {_short(now)}" for name, was, now in pairs if was != now]


def differences(
    requested: RequestedStage, same: Sequence[Record], digests: Mapping[str, str | None], origin: str | None = None
) -> list[str]:
    """What keeps the finished artifacts among `same` from being reused, for `origin` or else the nearest.

    `same`: the runs of this name in pipelines of the same name, newest first. `digests`: of the inputs of these.
    """
    finished = [record for record in same if record.finished]
    if not same:
        return [NEVER]
    if not finished:
        return [f"never finished: run {same[0].id[:8]} is {same[0].status}"]
    found = {record.id: _differences(requested, record, digests) for record in finished}
    return found[origin] if origin in found else min(found.values(), key=len)


def _differences(requested: RequestedStage, record: Record, digests: Mapping[str, str | None]) -> list[str]:
    lines = changed_fields(requested.config.identity_in(record.config), requested.config.identity())
    if record.version != requested.version:
        lines.append(f"stage version: {record.version} -> {requested.version}")
    lines += [f"input {role} was added" for role in sorted(requested.roles - set(record.inputs))]
    lines += [f"input {role} was left out" for role in sorted(set(record.inputs) - requested.roles)]
    for role, digest in requested.digests.items():
        if role in record.inputs and digests.get(record.inputs[role]) != digest:
            lines.append(f"input {role} changed")
    return lines


def _short(value: Any) -> str:
    if value is _UNSET:
        return "(unset)"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."
