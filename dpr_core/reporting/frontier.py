"""Frontiers: what policies reach at their KL to SFT, those of one kind at several strengths as a line.

Points at different KLs are no comparison: a control is read beside the line of the trained policy, at the control's KL.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from dpr_core.reporting import plots
from dpr_core.reporting.page import render
from dpr_core.reporting.report import GoldMeasure, Section
from dpr_core.reporting.tables import NONE, Table, escaped

EXPLAINED = (
    "Over the KL to SFT of their answers, in nats; a line joins policies of one origin, such as those kept along a "
    "run. The last column is that line's measure at the same KL, by interpolation, where the line reaches it. Entropy "
    "is in nats a token, of the distribution that drew."
)


@dataclass(frozen=True)
class Reached:
    """One policy on one benchmark."""

    policy: str
    line: str
    """The policies that it is one strength of; its own name where there are no others."""
    kl: float
    measure: GoldMeasure
    entropy: float | None
    tokens: float
    likelihood: float | None = None
    """Nats a token of held-out demonstrations, where they were measured."""


Line = Sequence[Reached]


def lines(points: Sequence[Reached]) -> dict[str, list[Reached]]:
    """By increasing KL."""
    found: dict[str, list[Reached]] = {}
    for point in sorted(points, key=lambda point: point.kl):
        found.setdefault(point.line, []).append(point)
    return found


def at_kl(line: Line, kl: float) -> float | None:
    """The measure of a line at a KL, linear between its neighbours; None beyond its ends."""
    for below, above in pairwise(line):
        if below.kl <= kl <= above.kl:
            share = (kl - below.kl) / (above.kl - below.kl) if above.kl > below.kl else 0.0
            return below.measure.value + share * (above.measure.value - below.measure.value)
    return None


def as_dict(frontiers: Mapping[str, Sequence[Reached]]) -> dict[str, Any]:
    """Every benchmark's lines as JSON values."""
    return {
        benchmark: {name: [asdict(point) for point in line] for name, line in lines(points).items()}
        for benchmark, points in frontiers.items()
    }


def frontier_section(frontiers: Mapping[str, Sequence[Reached]], trained: str) -> Section | None:
    """A chart and a table for each benchmark on which something has left SFT; None where nothing has."""
    charts: list[tuple[str, Markup]] = []
    tables: list[tuple[str, Table]] = []
    for benchmark, points in frontiers.items():
        if sum(point.kl > 0 for point in points) < 2:
            continue
        label = f"{points[0].measure.title} on {benchmark} over the KL to SFT"
        charts.append((label, plots.curves(label, "KL to SFT, nats an answer", curves(points))))
        tables.append((benchmark, table(points, trained)))
    if not charts:
        return None
    drawn = render("charts.html", explained=EXPLAINED, charts=charts)
    written = [f"{escaped(benchmark)}:\n\n{each.as_markdown()}" for benchmark, each in tables]
    html = Markup("").join([drawn, *(each.as_html() for _, each in tables)])
    return Section("Frontiers", html, "\n\n".join([*written, escaped(EXPLAINED)]))


def curves(points: Sequence[Reached]) -> dict[str, list[plots.ChartPoint]]:
    """The measures of each line with their intervals, shares in percent."""
    return {
        name: [
            plots.ChartPoint(point.kl, *(_scaled(point.measure, value) for value in _interval(point.measure)))
            for point in line
        ]
        for name, line in lines(points).items()
    }


def table(points: Sequence[Reached], trained: str) -> Table:
    """A row a policy, by KL, and what the line of the trained policy has there."""
    every = lines(points)
    theirs = next((line for line in every.values() if any(point.policy == trained for point in line)), [])
    first = points[0].measure
    with_likelihood = any(point.likelihood is not None for point in points)
    rows = []
    for point in sorted(points, key=lambda point: (point.kl, point.policy)):
        there = None if point in theirs else at_kl(theirs, point.kl)
        rows.append(
            [
                point.policy,
                f"{point.kl:.3f}",
                str(point.measure),
                NONE if point.entropy is None else f"{point.entropy:.3f}",
                f"{point.tokens:.1f}",
                *([NONE if point.likelihood is None else f"{point.likelihood:.3f}"] if with_likelihood else []),
                NONE if there is None else f"{_scaled(first, there):.{1 if first.is_share else 3}f}",
            ]
        )
    held_out = ["held-out nats a token"] if with_likelihood else []
    headings = ["policy", "KL (nats)", first.title, "entropy", "tokens", *held_out, f"{trained} at this KL"]
    return Table(headings, rows)


def _interval(measure: GoldMeasure) -> tuple[float, float, float]:
    low = measure.value if measure.low is None else measure.low
    return measure.value, low, measure.value if measure.high is None else measure.high


def _scaled(measure: GoldMeasure, value: float) -> float:
    return 100 * value if measure.is_share else value
