"""Placement rules: where each stage is done, here or on a Prefect work pool, by the rule that names it, else by `*`."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from dpr_core.errors import UsageError

STAGE_NAMES = (
    "backbone",
    "subsample",
    "prompts",
    "sft",
    "reward",
    "diagnose",
    "reinforce",
    "self_play",
    "continued_sft",
    "answer",
    "judge",
    "rate",
    "report",
    "experiment",
)

HERE = "here"
"""The place that is no pool: the process that was started, or its own processes on the same machine."""

OTHERS = "*"

POOL = re.compile(r"[A-Za-z0-9][\w. -]{0,63}(/[A-Za-z0-9][\w. -]{0,63})?")
"""A Prefect work pool, or one of its queues as pool/queue."""


def _rules(given: Any) -> Any:
    """One stage a rule: `sft,reinforce` is two."""
    if not isinstance(given, Mapping):
        raise ValueError('rules are expected, such as {sft: gpu, "*": cpu}')
    return _of_pairs(given.items())


def _of_pairs(pairs: Iterable[tuple[Any, Any]]) -> dict[str, str]:
    rules: dict[str, str] = {}
    for names, place in pairs:
        if not isinstance(place, str) or not POOL.fullmatch(place) or place.startswith(f"{HERE}/"):
            raise ValueError(f"{str(place)[:80]!r} is no place: give {HERE}, a work pool, or pool/queue")
        for name in (part.strip() for part in str(names).split(",")):
            if name not in (*STAGE_NAMES, OTHERS):
                near = difflib.get_close_matches(name[:80], STAGE_NAMES, n=1)
                hint = f"did you mean {near[0]}?" if near else f"stages: {', '.join(STAGE_NAMES)}, or * for the others"
                raise ValueError(f"there is no stage {name[:80]!r}; {hint}")
            if name in rules:
                raise ValueError(f"{name} is given two places; keep one of them")
            rules[name] = place
    return rules


Rules = Annotated[dict[str, str], BeforeValidator(_rules)]
"""Of stages, or `*` for those that no other rule names, to places."""


def place_of(rules: Mapping[str, str], stage: str) -> str:
    return rules.get(stage, rules.get(OTHERS, HERE))


def read_rules(assignments: Iterable[str]) -> dict[str, str]:
    """`sft,reinforce=gpu8`, as the command line takes it."""
    pairs = [assignment.partition("=") for assignment in assignments]
    try:
        if wrong := next((names for names, equals, _ in pairs if not equals), None):
            raise ValueError(f"{wrong[:80]!r}: stage=pool is expected, such as sft,reinforce=gpu")
        return _of_pairs((names, place.strip()) for names, _, place in pairs)
    except ValueError as error:
        raise UsageError(f"--place {error}") from None
