"""Guards in hindsight: the iteration at which each rule would have ended a run that went on."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dpr_core.config.reinforce import KLStopConfig, WitnessStopConfig
from dpr_core.training.guard import GUARDS


def _falls_to(name: str, share: float) -> Any:
    return lambda first, now: now[name] < share * first[name]


def _leaves(name: str, share: float) -> Any:
    return lambda first, now: abs(now[name] - first[name]) > share * first[name]


KL_LIMIT = KLStopConfig(max_sequence_kl=0.3)

RULES: Mapping[str, Any] = {
    f"KL above {KL_LIMIT.max_sequence_kl:g}": KL_LIMIT,
    "witness": WitnessStopConfig(),
    "entropy halved": _falls_to("entropy", 0.5),
    "length off by a quarter": _leaves("length", 0.25),
}
"""What may speak before a gold measure falls."""


def speaks(rule: str, curve: Mapping[str, Sequence[float | None]]) -> int | None:
    """The first iteration at which a rule would have ended a run that showed this; what is no number is NaN."""
    check = RULES[rule]
    known = {name: [math.nan if value is None else value for value in values] for name, values in curve.items()}
    rows = [dict(zip(known, values, strict=True)) for values in zip(*known.values(), strict=True)]
    if callable(check):
        return next((i for i, row in enumerate(rows, start=1) if check(rows[0], row)), None)
    guard = GUARDS[type(check)](check)
    for i, row in enumerate(rows, start=1):
        if guard.watch({f"rollout/{name}": value for name, value in row.items()}).stop:
            return i
    return None
