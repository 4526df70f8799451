"""Plots, as PNG files whose bytes depend on the numbers alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure


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


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
