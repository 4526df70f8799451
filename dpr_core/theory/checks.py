"""Measurement of all claims on many random instances: a table of worst residuals."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from dpr_core.theory import bounds, eos, iq_learn, policy_gradient, shaping, soft_bellman
from dpr_core.theory.claim import Measured, TheoryClaim, cases

CLAIMS: list[TheoryClaim] = [
    *soft_bellman.CLAIMS,
    *iq_learn.CLAIMS,
    *bounds.CLAIMS,
    *policy_gradient.CLAIMS,
    *shaping.CLAIMS,
    *eos.CLAIMS,
]


@dataclass(frozen=True)
class Identity:
    """A claim and its worst residual; for an inequality the largest violation, so anything up to 0 is fine."""

    name: str
    residual: float
    tolerance: float
    holds: bool
    note: str


def run(seed: int, instances: int, on_progress: Callable[[int, int], None] | None = None) -> list[Identity]:
    """The worst residual of every claim over `instances` random instances, false claims of the paper included."""
    drawn = list(cases(seed, instances))
    identities = []
    for done, claim in enumerate(CLAIMS, start=1):
        identities.append(_identity(claim, [claim.measure(case) for case in drawn]))
        if on_progress is not None:
            on_progress(done, len(CLAIMS))
    return identities


def _identity(claim: TheoryClaim, measured: list[Measured]) -> Identity:
    residuals = [each.residual for each in measured]
    worst = math.nan if any(map(math.isnan, residuals)) else max(residuals)
    mean, most, least = {}, {}, {}
    for fact in measured[0].facts:
        values = [each.facts[fact] for each in measured]
        mean[fact], most[fact], least[fact] = sum(values) / len(values), max(values), min(values)
    note = claim.note.format(mean=mean, most=most, least=least)
    slacks = [each.slack for each in measured if each.slack is not None]
    if slacks:
        note += f"; least slack ratio {min(slacks):.3g}"
    return Identity(claim.name, worst, claim.tolerance, worst <= claim.tolerance, note)


def table(identities: list[Identity]) -> str:
    """The identities as a Markdown table."""
    lines = ["| claim | holds | worst residual | tolerance | note |", "|---|---|---|---|---|"]
    for each in identities:
        cells = (
            each.name,
            "yes" if each.holds else "no",
            f"{each.residual:.1e}",
            f"{each.tolerance:.0e}",
            each.note,
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)
