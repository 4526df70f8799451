"""Guards in hindsight: the iteration at which each rule would have ended a run that went on."""

from collections.abc import Mapping, Sequence
from typing import Any

from dpr_core.config.reinforce import KLStopConfig, WitnessStopConfig
from dpr_core.training.guard import GUARDS


def _falls_to(name: str, share: float) -> Any:
    return lambda first, now: now[name] is not None and now[name] < share * first[name]


def _leaves(name: str, share: float) -> Any:
    return lambda first, now: now[name] is not None and abs(now[name] / first[name] - 1) > share


RULES: Mapping[str, Any] = {
    "KL above 0.5": KLStopConfig(),
    "witness": WitnessStopConfig(),
    "entropy halved": _falls_to("entropy", 0.5),
    "length off by a quarter": _leaves("length", 0.25),
}
"""What may speak before a gold measure falls."""


def speaks(rule: str, curve: Mapping[str, Sequence[float | None]]) -> int | None:
    """The first iteration at which a rule would have ended a run that showed this."""
    check = RULES[rule]
    rows = [dict(zip(curve, values, strict=True)) for values in zip(*curve.values(), strict=True)]
    if callable(check):
        return next((i for i, row in enumerate(rows, start=1) if check(rows[0], row)), None)
    guard = GUARDS[type(check)](check)
    for i, row in enumerate(rows, start=1):
        if guard.watch({f"rollout/{name}": value for name, value in row.items() if value is not None}).stop:
            return i
    return None
