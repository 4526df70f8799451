"""Plots by matplotlib: PNG files, and SVG inside a page; their bytes depend on the numbers alone.

matplotlib takes most of a second to import, so the first plot does it.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree

from markupsafe import Markup

from dpr_core.text import escape_control

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Valued = tuple[float, float, float]
"""A value with the low and the high end of its interval."""

HUES = ("#3b72c4", "#d1682b", "#2e9465", "#a3569f", "#b58a12", "#2b97a8", "#c2485b", "#7a7f87")
"""Colours inside pages: to be read on light and on dark paper. Black becomes the page's own ink."""

LONGEST = 18
"""Characters of a name beside an axis or in a legend."""

PER_ROW = 4
"""Names in a row of a legend."""

MARKERS = "o^sDv"
"""Of series, each for as many as there are colours."""


class BoxStats(NamedTuple):
    """A distribution: its quantiles at 5, 25, 50, 75 and 95%, and its mean."""

    low: float
    first: float
    median: float
    third: float
    high: float
    mean: float


class ChartPoint(NamedTuple):
    """A value with its interval."""

    x: float
    y: float
    low: float
    high: float


def lines(path: Path, title: str, x_label: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """One panel for each series of (x, y) points, stacked above a common x axis."""
    figure = _figure(7, 1.8 * len(series) + 0.6)
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
    figure = _figure(7, 0.5 * len(rows) + 1.4)
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
    linear_to: float | None = None,
) -> None:
    """One panel for each quantity, stacked above a common x axis: a line for each series, its interval as a band.

    A series of one name has one colour in all panels, and one entry in the legend below them. Beyond `linear_to` the x
    axis is logarithmic.
    """
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    figure = _figure(7, 2.4 * len(panels) + 0.6 + 0.2 * math.ceil(len(names) / 3))
    shown = {}
    every = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (quantity, series) in zip(every, panels.items(), strict=True):
        for name, points in series.items():
            which = names.index(name)
            x, colour = [at for at, _ in points], f"C{which % 10}"
            marker = MARKERS[which // 10 % len(MARKERS)] if len(points) < 60 else ""
            y = [value for _, (value, _, _) in points]
            [shown[name]] = axes.plot(x, y, color=colour, marker=marker, markersize=4, label=name)
            low, high = [low for _, (_, low, _) in points], [high for _, (_, _, high) in points]
            axes.fill_between(x, low, high, color=colour, alpha=0.2)
        if even and quantity in even:
            axes.axhline(even[quantity], linestyle="--", color="grey", linewidth=1)
        axes.set_ylabel(quantity)
        axes.grid(alpha=0.3)
    every[0].set_title(title)
    every[-1].set_xlabel(x_label)
    reached = max((at for series in panels.values() for points in series.values() for at, _ in points), default=0.0)
    if linear_to is not None and reached > linear_to:
        from matplotlib.ticker import SymmetricalLogLocator

        every[-1].set_xscale("symlog", linthresh=linear_to, subs=(2, 5))
        every[-1].xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=linear_to, subs=(1, 2, 5)))
        every[-1].xaxis.set_major_formatter("{x:g}")
    if len(names) > 1:
        figure.legend(handles=shown.values(), loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    _save(figure, path)


def bars(
    path: Path, title: str, y_label: str, groups: Mapping[str, Mapping[str, Valued]], *, even: float | None = None
) -> None:
    """Bars side by side in each group, with their intervals; a bar of one name has one colour."""
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    figure = _figure(max(7.0, 0.4 * len(groups) * len(names)), 3.6)
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


def boxes(label: str, unit: str, rows: Mapping[str, BoxStats]) -> Markup:
    """A horizontal box for each row, as SVG: quartiles, whiskers from 5 to 95%, a dot at the mean, with its number."""
    figure = _figure(10, 0.36 * len(rows) + 0.8)
    axes = figure.subplots()
    stats = [
        {"whislo": box.low, "q1": box.first, "med": box.median, "q3": box.third, "whishi": box.high, "mean": box.mean}
        for box in rows.values()
    ]
    drawn = axes.bxp(
        [each | {"label": _short(name)} for name, each in zip(rows, stats, strict=True)],
        widths=0.6,
        orientation="horizontal",
        patch_artist=True,
        showcaps=False,
        showfliers=False,
        showmeans=True,
        boxprops={"facecolor": f"{HUES[0]}48", "edgecolor": HUES[0]},
        whiskerprops={"color": HUES[0], "alpha": 0.6},
        medianprops={"color": HUES[0], "linewidth": 2.5},
        meanprops={"marker": "o", "markerfacecolor": HUES[0], "markeredgecolor": HUES[0]},
    )
    for i, ((name, box), patch) in enumerate(zip(rows.items(), drawn["boxes"], strict=True), start=1):
        tooltip = (
            f"{name}: mean {box.mean:.1f}, median {box.median:g}, half between {box.first:g} and {box.third:g}, "
            f"90% between {box.low:g} and {box.high:g} {unit}"
        )
        patch.set_gid(_titled("box", tooltip))
        axes.text(1.02, i, f"{box.mean:.1f}", transform=axes.get_yaxis_transform(), va="center")
    axes.set_xlim(left=0)
    axes.invert_yaxis()
    axes.set_xlabel(escape_control(unit))
    axes.grid(alpha=0.3, axis="x")
    return _inline(figure, label)


def forest(label: str, unit: str, rows: Mapping[str, Valued], *, even: float) -> Markup:
    """A horizontal interval for each row, as SVG, with its number, around a dashed line at `even`."""
    figure = _figure(10, 0.36 * len(rows) + 0.8)
    axes = figure.subplots()
    for i, (name, (value, low, high)) in enumerate(rows.items()):
        axes.plot([low, high], [i, i], color=HUES[0], linewidth=2.5, solid_capstyle="butt", alpha=0.6)
        tooltip = f"{name}: {value:.1f} [{low:.1f}, {high:.1f}] {unit}"
        axes.plot(value, i, marker="o", markersize=8, color=HUES[0], gid=_titled("dot", tooltip))
        axes.text(1.02, i, f"{value:.1f}", transform=axes.get_yaxis_transform(), va="center")
    axes.set_yticks(range(len(rows)), [_short(name) for name in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.axvline(even, linestyle="--", color="grey", linewidth=1)
    axes.set_xlabel(escape_control(unit))
    axes.grid(alpha=0.3, axis="x")
    return _inline(figure, label)


def curves(
    label: str,
    x_label: str,
    series: Mapping[str, Sequence[ChartPoint]],
    even: float | None = None,
    *,
    joined_from: int = 2,
) -> Markup:
    """A line for each series of at least so many points, as SVG, with its intervals, and a dashed line at `even`."""
    figure = _figure(10, 3.6 + 0.25 * math.ceil(len(series) / PER_ROW))
    axes = figure.subplots()
    for i, (name, every) in enumerate(series.items()):
        points, colour = sorted(every), HUES[i % len(HUES)]
        x, y = [p.x for p in points], [p.y for p in points]
        spread = [[p.y - p.low for p in points], [p.high - p.y for p in points]]
        joined = "-" if len(points) >= joined_from else "o"
        axes.errorbar(x, y, yerr=spread, fmt=joined, color=colour, linewidth=2, elinewidth=1.25, label=_short(name))
        for p in points:
            tooltip = f"{name}: {p.y:.1f} [{p.low:.1f}, {p.high:.1f}] at {p.x:.4g}"
            axes.plot(p.x, p.y, marker="o", color=colour, gid=_titled("dot", tooltip))
    if even is not None:
        axes.axhline(even, linestyle="--", color="grey", linewidth=1)
    axes.set_xlabel(escape_control(x_label))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=PER_ROW, frameon=False, fontsize="small")
    return _inline(figure, label)


def _figure(width: float, height: float) -> "Figure":
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    # A dollar sign in a name is no formula.
    rcParams["text.parse_math"] = False
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: "Figure", path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def _inline(figure: "Figure", label: str) -> Markup:
    """The figure as an element of a page, in the page's ink, and without styles, which the page's policy forbids."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "dense-path"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(text.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in list(root.iter()):
        _plain(element)
    attributes = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": escape_control(label)}
    root.attrib.clear()
    root.attrib.update(attributes)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _plain(element: ElementTree.Element) -> None:
    """No namespaces, style as attributes, black as the page's ink, and the text of `_titled` as class and title."""
    element.tag = _local(element.tag)
    found = {_local(name): value for name, value in element.attrib.items()}
    for rule in filter(None, found.pop("style", "").split(";")):
        name, _, value = (part.strip() for part in rule.partition(":"))
        if name not in ("font", "font-family"):
            found[name] = "currentColor" if value == "#000000" else value
    if element.tag == "g":
        kind, titled, text = found.pop("id", "").partition("|")
        if titled:
            found["class"] = kind
            title = ElementTree.Element("title")
            title.text = text
            element.insert(0, title)
    element.attrib.clear()
    element.attrib.update(found)


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _titled(kind: str, text: str) -> str:
    """A name for what is drawn that says its class, and what is shown where the pointer rests on it."""
    return f"{kind}|{escape_control(text)}"


def _short(name: str) -> str:
    shown = escape_control(name)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}\u2026"
