"""An exhibit: a table or figure as an experiment, with its claims."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpr_core.experiments.claims import Claim, ClaimVerdict, Where, judged
from dpr_core.experiments.observations import BASELINE, Observation
from dpr_core.experiments.quantities import Quantity

TRAINED = "DPR"
"""The policy that the paper is about."""

Grid = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Exhibit:
    """A table or figure of the paper as an experiment."""

    name: str
    title: str
    runs: str
    """What is run, in a sentence."""
    assignments: tuple[str, ...] = ()
    """What the recipe is changed by first, as `--set` takes it."""
    grid: Grid = field(default_factory=dict)
    quick_grid: Grid | None = None
    claimed: tuple[Claim, ...] = ()
    shows: tuple[Quantity, ...] = ()
    """What its table and plots have beside win rate and accuracy."""
    by_position: bool = False
    """Whether the answers' means by position are needed."""
    credit_page: bool = False
    """Whether the page of coloured tokens belongs to it."""

    def over(self, quick: bool = False) -> Grid:
        """The values of each field that is varied; the seeds are not among them."""
        return self.quick_grid if quick and self.quick_grid is not None else self.grid

    def claims(self, observations: Sequence[Observation]) -> list[ClaimVerdict]:
        """A verdict on every claim."""
        return [judged(claim, observations) for claim in self.claimed]


def of(policy: str, name: str = "", holds: Callable[[Any], bool] = lambda value: True) -> Where:
    """Observations of a policy, where a field has a value for which `holds` is true."""
    return lambda each: each.policy == policy and (not name or (name in each.values and holds(each.values[name])))


def equals(value: float) -> Callable[[Any], bool]:
    """Whether a field has this number."""
    return lambda found: is_number(found) and abs(found - value) < 1e-9


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


DPR, SFT = of(TRAINED), of(BASELINE)
ALONE = ("methods={}", "evaluation.controls={}")
"""No policies but DPR and SFT."""
UNDIAGNOSED = (*ALONE, "diagnose=null")
