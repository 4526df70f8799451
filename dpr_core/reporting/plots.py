"""Plots, as PNG files whose bytes depend on the numbers alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rcParams
from matplotlib.figure import Figure

# A dollar sign in a name is no formula.
rcParams["text.parse_math"] = False

Valued = tuple[float, float, float]
"""A value with the low and the high end of its interval."""


def lines(path: Path, title: str, x_label: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """One panel for each series of (x, y) points, stacked above a common x axis."""
    figure = Figure(figsize=(7, 1.8 * len(series) + 0.6), layout="constrained")
    panels = figure.subplots(len(series), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, points) in zip(panels, series.items(), strict=True):
        axes.plot([x for x, _ in points], [y for _, y in points], marker="." if len(points) < 60 else "")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
    panels[0].set_title(title)
    panels[-1].set_xlabel(x_label)
    _save(figure, path)


def intervals(path: Path, title: str, rows: Sequence[tuple[str, float, float, float]], *, even: float) -> None:
    """Horizontal bars of (name, value, low, high) around the line at `even`."""
    figure = Figure(figsize=(7, 0.5 * len(rows) + 1.4), layout="constrained")
    axes = figure.subplots()
    for i, (_, value, low, high) in enumerate(rows):
        axes.errorbar(value, i, xerr=[[value - low], [high - value]], fmt="o", capsize=4)
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.axvline(even, linestyle="--", color="grey", linewidth=1)
    axes.set_xlabel(title)
    _save(figure, path)


def bands(
    path: Path,
    title: str,
    x_label: str,
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, Valued]]]],
    even: Mapping[str, float] | None = None,
) -> None:
    """One panel for each quantity, stacked above a common x axis: a line for each series, its interval as a band.

    A series of one name has one colour in all panels.
    """
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    figure = Figure(figsize=(7, 2.4 * len(panels) + 0.6), layout="constrained")
    every = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (quantity, series) in zip(every, panels.items(), strict=True):
        for name, points in series.items():
            x, colour = [at for at, _ in points], f"C{names.index(name)}"
            marker = "." if len(points) < 60 else ""
            axes.plot(x, [value for _, (value, _, _) in points], color=colour, marker=marker, label=name)
            low, high = [low for _, (_, low, _) in points], [high for _, (_, _, high) in points]
            axes.fill_between(x, low, high, color=colour, alpha=0.2)
        if even and quantity in even:
            axes.axhline(even[quantity], linestyle="--", color="grey", linewidth=1)
        axes.set_ylabel(quantity)
        axes.grid(alpha=0.3)
        if len(series) > 1:
            axes.legend(fontsize="small")
    every[0].set_title(title)
    every[-1].set_xlabel(x_label)
    _save(figure, path)


def bars(
    path: Path, title: str, y_label: str, groups: Mapping[str, Mapping[str, Valued]], *, even: float | None = None
) -> None:
    """Bars side by side in each group, with their intervals; a bar of one name has one colour."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    figure = Figure(figsize=(max(7.0, 0.4 * len(groups) * len(names)), 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(1, len(names))
    for i, name in enumerate(names):
        found = [(at, group[name]) for at, group in enumerate(groups.values()) if name in group]
        x = [at + (i - (len(names) - 1) / 2) * width for at, _ in found]
        values = [value for _, (value, _, _) in found]
        spread = [[value - low for _, (value, low, _) in found], [high - value for _, (value, _, high) in found]]
        axes.bar(x, values, width, yerr=spread, capsize=3, label=name)
    axes.set_xticks(range(len(groups)), list(groups))
    if even is not None:
        axes.axhline(even, linestyle="--", color="grey", linewidth=1)
    axes.set_title(title)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    if len(names) > 1:
        axes.legend(fontsize="small")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
