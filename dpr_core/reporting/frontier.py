"""Frontiers: what policies reach at their KL to SFT, those of one kind at several strengths as a line.

Points at different KLs are no comparison: a control is read beside the line of the trained policy, at the control's KL.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from dpr_core.reporting import plots
from dpr_core.reporting.page import render
from dpr_core.reporting.report import GoldMeasure, Section
from dpr_core.reporting.tables import NONE, Table, escaped


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
    explained = _explained([each for _, each in tables], frontiers, trained)
    drawn = render("charts.html", explained=explained, charts=charts)
    written = [f"{escaped(benchmark)}:\n\n{each.as_markdown()}" for benchmark, each in tables]
    html = Markup("").join([drawn, *(each.as_html() for _, each in tables)])
    return Section("Frontiers", html, "\n\n".join([*written, escaped(explained)]))


def _explained(tables: Sequence[Table], frontiers: Mapping[str, Sequence[Reached]], trained: str) -> str:
    """Of the charts and the columns that are there."""
    headings = {heading for each in tables for heading in each.headings}
    found = ["Over the KL to SFT of the policies' answers, in nats an answer."]
    if any(len(line) > 1 for points in frontiers.values() for line in lines(points).values()):
        found.append("A line joins policies of one origin, such as those kept along a run.")
    if at_this_kl(trained) in headings:
        found.append(
            f"{at_this_kl(trained)}: the measure of {trained}'s line there, interpolated, where the line reaches it."
        )
    if "entropy" in headings:
        found.append("Entropy is in nats a token, of the distribution that drew.")
    return " ".join(found)


def at_this_kl(trained: str) -> str:
    """The heading of what the trained policy's line has at a control's KL."""
    return f"{trained} at this KL"


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
    columns: dict[str, Callable[[Reached], str | None]] = {
        "KL (nats)": lambda point: f"{point.kl:.3f}",
        first.title: lambda point: str(point.measure),
        "entropy": lambda point: None if point.entropy is None else f"{point.entropy:.3f}",
        "tokens": lambda point: f"{point.tokens:.1f}",
        "held-out nats a token": lambda point: None if point.likelihood is None else f"{point.likelihood:.3f}",
        at_this_kl(trained): lambda point: _there(point, theirs),
    }
    ordered = sorted(points, key=lambda point: (point.kl, point.policy))
    cells = {heading: [cell(point) for point in ordered] for heading, cell in columns.items()}
    kept = {heading: column for heading, column in cells.items() if any(cell is not None for cell in column)}
    rows = [[point.policy, *(column[i] or NONE for column in kept.values())] for i, point in enumerate(ordered)]
    return Table(["policy", *kept], rows)


def _there(point: Reached, theirs: Line) -> str | None:
    there = None if point in theirs else at_kl(theirs, point.kl)
    return None if there is None else f"{_scaled(point.measure, there):.{1 if point.measure.is_share else 3}f}"


def _interval(measure: GoldMeasure) -> tuple[float, float, float]:
    low = measure.value if measure.low is None else measure.low
    return measure.value, low, measure.value if measure.high is None else measure.high


def _scaled(measure: GoldMeasure, value: float) -> float:
    return 100 * value if measure.is_share else value
