"""Claims about paired effects: `first` minus `second` of a quantity, seed by seed, by a t test that Holm adjusts."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

from dpr_core.experiments.observations import ACCURACY, WIN_RATE, Observation, Quantity, estimate_of
from dpr_core.stats import error_behind, holm, t_test

LEVEL = 0.05
"""Of the adjusted p-values that decide."""

Selector = Callable[[Observation], bool]
Unit = tuple[int, str]
ClaimOutcome = Literal["reproduced", "not reproduced", "undecided", "not run"]
Author = Literal["paper", "project"]


@dataclass(frozen=True)
class EffectClaim:
    """`first` minus `second` of a quantity is above 0; with a margin, no further from 0 than that."""

    name: str
    says: str
    """In words."""
    first: Selector
    second: Selector | None = None
    """None compares with `level`."""
    level: float = 0.0
    margin: float | None = None
    """For claims of equality."""
    quantity: Quantity = WIN_RATE
    by: Author = "paper"


@dataclass(frozen=True)
class ClaimVerdict:
    """What an experiment says about a claim. The effect is positive where it is as claimed."""

    claim: str
    by: Author
    verdict: ClaimOutcome
    effect: float | None
    """Mean over seeds."""
    interval: tuple[float, float] | None
    """95% interval over seeds."""
    seeds: int
    unit: str
    margin: float | None = None
    p_value: float | None = None
    """Of Student's paired t test; of a claim of equality, of two one-sided ones against its margin."""
    adjusted: float | None = None
    """By Holm for the claims of one exhibit: it decides."""
    accuracy_effect: float | None = None
    """Where the effect is one of win rate: the same difference in accuracy."""
    accuracy_interval: tuple[float, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The verdict as JSON values."""
        return asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The verdict that `as_dict` and JSON made these of."""
        plain: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in values.items()}
        return cls(**plain)


def verdict_on(claim: EffectClaim, observations: Sequence[Observation]) -> ClaimVerdict:
    """The verdict that these observations allow on a claim."""
    effects = paired_effects(claim, claim.quantity, observations)
    if not effects:
        return ClaimVerdict(claim.name, claim.by, "not run", None, None, 0, claim.quantity.unit, claim.margin)
    mean, interval, seeds = estimate_of(list(effects.values()))
    beside = paired_effects(claim, ACCURACY, observations) if claim.quantity is WIN_RATE else {}
    accuracy = estimate_of(list(beside.values())) if beside else None
    alone = ClaimVerdict(
        claim.name,
        claim.by,
        "undecided",
        mean,
        interval,
        seeds,
        claim.quantity.unit,
        claim.margin,
        accuracy_effect=accuracy.mean if accuracy else None,
        accuracy_interval=accuracy.interval if accuracy else None,
    )
    return corrected([alone])[0]


def corrected(verdicts: Sequence[ClaimVerdict]) -> list[ClaimVerdict]:
    """The verdicts on claims that are asked together, by their p-values as Holm adjusts them."""
    p_values = [_p_value(each) for each in verdicts]
    tested = [i for i, p in enumerate(p_values) if p is not None]
    adjusted = dict(zip(tested, holm([p for p in p_values if p is not None]), strict=True))
    found = []
    for i, each in enumerate(verdicts):
        p = adjusted.get(i)
        verdict = each.verdict if each.effect is None else outcome(each.effect, each.interval, p, each.margin)
        found.append(replace(each, p_value=p_values[i], adjusted=p, verdict=verdict))
    return found


def _p_value(verdict: ClaimVerdict) -> float | None:
    if verdict.effect is None or verdict.interval is None:
        return None
    return t_test(verdict.effect, error_behind(verdict.interval, verdict.seeds), verdict.seeds, verdict.margin)


def outcome(
    effect: float, interval: tuple[float, float] | None, p_value: float | None, margin: float | None = None
) -> ClaimOutcome:
    """By the adjusted p-value; a claim of equality is refuted by an interval that is all of it beyond the margin."""
    if interval is None or p_value is None:
        return "undecided"
    if margin is not None:
        refuted = interval[0] > margin or interval[1] < -margin
        return "reproduced" if p_value < LEVEL else "not reproduced" if refuted else "undecided"
    if p_value >= LEVEL:
        return "undecided"
    return "reproduced" if effect > 0 else "not reproduced"


def paired_effects(claim: EffectClaim, quantity: Quantity, observations: Sequence[Observation]) -> Mapping[Unit, float]:
    """The effect in every unit, a seed with its SFT model, that has all of both sides."""
    first = _means(claim.first, quantity, observations)
    if claim.second is None:
        return {unit: mean - claim.level for unit, mean in first.items()}
    second = _means(claim.second, quantity, observations)
    return {unit: mean - second[unit] for unit, mean in first.items() if unit in second}


def _means(where: Selector, quantity: Quantity, observations: Sequence[Observation]) -> dict[Unit, float]:
    """Over the settings and benchmarks of every unit; those are left out that lack one which another unit has."""
    values: dict[Unit, list[float | None]] = {}
    for each in observations:
        if where(each):
            values.setdefault(each.unit, []).append(quantity.read(each))
    most = max(map(len, values.values()), default=0)
    known = {unit: [value for value in found if value is not None] for unit, found in values.items()}
    return {unit: statistics.mean(found) for unit, found in known.items() if len(found) == most}
