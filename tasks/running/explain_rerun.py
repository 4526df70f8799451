"""Why work has to be done again: what differs from the nearest artifact there is."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpr_core.config.base import StageConfig
from tasks.artifacts.run_records import Record, flatten

FORCED = "it was asked for by force"
NEVER = "never ran"
UNEXPLAINED = "no finished artifact has this key"
SHOWN_LENGTH = 60
_UNSET = object()


@dataclass(frozen=True)
class Wanted:
    """What is about to be made. `digests` lacks the inputs that are still to be made themselves."""

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
    return [f"{name}: {_shown(was)} -> {_shown(now)}" for name, was, now in pairs if was != now]


def differences(
    wanted: Wanted, same: Sequence[Record], digests: Mapping[str, str | None], origin: str | None = None
) -> list[str]:
    """What keeps the finished artifacts among `same` from being reused, told of `origin` or else of the nearest.

    `same`: what was made under the wanted name, newest first. `digests`: of what these were made from.
    """
    finished = [record for record in same if record.finished]
    if not same:
        return [NEVER]
    if not finished:
        return [f"never finished: attempt {same[0].id[:8]} is {same[0].status}"]
    found = {record.id: _differences(wanted, record, digests) for record in finished}
    return found[origin] if origin in found else min(found.values(), key=len)


def _differences(wanted: Wanted, record: Record, digests: Mapping[str, str | None]) -> list[str]:
    lines = changed_fields(wanted.config.identity_in(record.config), wanted.config.identity())
    if record.version != wanted.version:
        lines.append(f"stage version: {record.version} -> {wanted.version}")
    lines += [f"input {role} was added" for role in sorted(wanted.roles - set(record.inputs))]
    lines += [f"input {role} was left out" for role in sorted(set(record.inputs) - wanted.roles)]
    for role, digest in wanted.digests.items():
        if role in record.inputs and digests.get(record.inputs[role]) != digest:
            lines.append(f"input {role} changed")
    return lines


def _shown(value: Any) -> str:
    if value is _UNSET:
        return "(unset)"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_LENGTH else text[: SHOWN_LENGTH - 3] + "..."
