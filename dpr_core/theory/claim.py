"""What a claim of the paper is here: a name, a tolerance, and a measurement on one random instance."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dpr_core.theory.cases import Case

EXACT = 1e-9
"""Tolerance in float64, for numbers of the order of 1 to 100."""


@dataclass(frozen=True)
class Measured:
    """One instance: a residual (at most the tolerance where the claim holds), a slack ratio, and facts for the note."""

    residual: float
    slack: float | None = None
    facts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TheoryClaim:
    """A statement and how it is measured. `note` may use {mean[fact]}, {most[fact]} and {least[fact]}."""

    name: str
    note: str
    measure: Callable[[Case], Measured]
    tolerance: float = EXACT


def equal(left: Tensor | float, right: Tensor | float, **facts: float) -> Measured:
    """The claim left = right: its residual is the largest absolute difference."""
    return Measured(float(torch.as_tensor(left - right).abs().max()), facts=facts)


def at_most(pairs: list[tuple[float, float]], **facts: float) -> Measured:
    """The claim left <= right for every pair: its residual is the largest left - right, its slack the least ratio."""
    ratios = [right / left for left, right in pairs if left > EXACT]
    return Measured(max(left - right for left, right in pairs), min(ratios, default=None), facts)
