"""Every exhibit by name."""

from collections.abc import Mapping

from dpr_core.experiments.exhibit import Exhibit
from dpr_core.experiments.paper_figures import FIGURE1, FIGURE2, FIGURE3, FIGURE4A, FIGURE4B
from dpr_core.experiments.paper_tables import TABLE1, TABLE2

SWEEP = Exhibit(name="sweep", title="Sweep", runs="Every policy of the recipe, for every combination of the fields.")

EXHIBITS: Mapping[str, Exhibit] = {
    each.name: each for each in (TABLE1, TABLE2, FIGURE1, FIGURE2, FIGURE3, FIGURE4A, FIGURE4B)
}
"""What the paper shows."""


def named(name: str) -> Exhibit:
    """An exhibit of the paper, or the plain sweep."""
    return SWEEP if name == SWEEP.name else EXHIBITS[name]
