"""Charts as SVG inside a page: no script, no file, coloured by the page's own style in light and in dark."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dpr_core.reporting.page import Html, element, join
from dpr_core.text import escape_control

WIDTH, LEFT, RIGHT, ROW, LONGEST = 720, 150, 60, 26, 18
COLOURS = 8


class Box(NamedTuple):
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


def boxes(label: str, unit: str, rows: Mapping[str, Box]) -> Html:
    """A horizontal box for each row: quartiles, a whisker from 5 to 95%, and a dot at the mean, with its number."""
    ticks = nice_ticks(0, max(max(box.high, box.mean) for box in rows.values()))
    bottom = ROW * len(rows) + 8
    scale = _Scale(ticks[0], ticks[-1], LEFT, WIDTH - RIGHT)
    marks = [_vertical(scale(tick), bottom, f"{tick:g}") for tick in ticks]
    for i, (name, box) in enumerate(rows.items()):
        y = ROW * i + ROW / 2 + 4
        told = (
            f"{escape_control(name)}: mean {box.mean:.1f}, median {box.median:g}, half between {box.first:g} and "
            f"{box.third:g}, 90% between {box.low:g} and {box.high:g} {escape_control(unit)}"
        )
        width = max(1.0, scale(box.third) - scale(box.first))
        marks.append(
            element(
                "g",
                element("title", told),
                _line(scale(box.low), y, scale(box.high), y, "whisker"),
                element("rect", x=_n(scale(box.first)), y=_n(y - 7), width=_n(width), height=14, rx=3, class_="box"),
                _line(scale(box.median), y - 7, scale(box.median), y + 7, "median"),
                element("circle", cx=_n(scale(box.mean)), cy=_n(y), r="3.5", class_="mean"),
                _text(LEFT - 12, y + 4, _short(name), "end"),
                _text(WIDTH - RIGHT + 12, y + 4, f"{box.mean:.1f}", "start"),
            )
        )
    marks.append(_text((LEFT + WIDTH - RIGHT) / 2, bottom + 38, unit, "middle", "axis"))
    return _figure(label, bottom + 46, marks)


def curves(label: str, x_label: str, series: Mapping[str, Sequence[ChartPoint]], even: float | None = None) -> Html:
    """A line for each series, with its intervals, and a dashed line at `even`; its legend stands below."""
    points = [point for every in series.values() for point in every]
    x_ticks = nice_ticks(min(p.x for p in points), max(p.x for p in points))
    y_values = [value for p in points for value in (p.low, p.high)] + ([] if even is None else [even])
    y_ticks = nice_ticks(min(y_values), max(y_values))
    top, bottom, left = 10.0, 240.0, 56.0
    across, up = _Scale(x_ticks[0], x_ticks[-1], left, WIDTH - 24), _Scale(y_ticks[0], y_ticks[-1], bottom, top)
    marks = [_text(across(tick), bottom + 18, f"{tick:g}", "middle", "axis") for tick in x_ticks]
    for tick in y_ticks:
        marks.append(_line(left, up(tick), WIDTH - 24, up(tick), "grid"))
        marks.append(_text(left - 10, up(tick) + 4, f"{tick:g}", "end", "axis"))
    if even is not None:
        marks.append(_line(left, up(even), WIDTH - 24, up(even), "even"))
    shift = 3.0
    for i, (name, every) in enumerate(series.items()):
        # A little to the side, so that intervals of the same x do not cover each other.
        aside = shift * (i - (len(series) - 1) / 2)
        places = [(across(p.x) + aside, p) for p in sorted(every)]
        path = " ".join(f"{_n(x)},{_n(up(p.y))}" for x, p in places)
        drawn = [element("polyline", points=path, class_="curve")]
        for x, p in places:
            told = f"{escape_control(name)}: {p.y:.1f} [{p.low:.1f}, {p.high:.1f}] at {p.x:.4g}"
            drawn.append(_line(x, up(p.low), x, up(p.high), "spread"))
            drawn.append(element("circle", element("title", told), cx=_n(x), cy=_n(up(p.y)), r="3.5", class_="dot"))
        marks.append(element("g", *drawn, class_=f"s{i % COLOURS}"))
    marks.append(_text((left + WIDTH - 24) / 2, bottom + 38, x_label, "middle", "axis"))
    legend = [
        element("span", element("i", class_=f"s{i % COLOURS}"), escape_control(name), class_="key")
        for i, name in enumerate(series)
    ]
    return join(_figure(label, bottom + 46, marks), element("p", *legend, class_="legend"))


def nice_ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers, evenly spaced, from one at or below `low` to one at or above `high`."""
    if high <= low:
        low, high = low - 0.5, low + 0.5
    rough = (high - low) / about
    size = 10.0 ** math.floor(math.log10(rough))
    step = size * next(factor for factor in (1, 2, 5, 10) if size * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


class _Scale(NamedTuple):
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _figure(label: str, height: float, marks: Sequence[Html]) -> Html:
    view = f"0 0 {WIDTH} {_n(height)}"
    drawn = element("svg", *marks, viewBox=view, role="img", aria_label=escape_control(label))
    caption = element("figcaption", escape_control(label))
    return element("figure", caption, element("div", drawn, class_="drawing"))


def _vertical(x: float, bottom: float, text: str) -> Html:
    return join(_line(x, 4, x, bottom, "grid"), _text(x, bottom + 18, text, "middle", "axis"))


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Html:
    return element("line", x1=_n(x1), y1=_n(y1), x2=_n(x2), y2=_n(y2), class_=kind)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "label") -> Html:
    return element("text", escape_control(text), x=_n(x), y=_n(y), text_anchor=anchor, class_=kind)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "\u2026"


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


STYLE = """
.drawing { overflow-x: auto; }
svg { display: block; width: 100%; min-width: 32rem; max-width: 54rem; height: auto; }
svg text { font-size: 12.5px; fill: var(--ink); }
svg text.axis { fill: var(--quiet); font-size: 11.5px; }
.grid { stroke: var(--line); }
.even { stroke: var(--quiet); stroke-dasharray: 5 4; }
.whisker { stroke: var(--accent); stroke-width: 1.5; opacity: .55; }
.box { fill: var(--accent); opacity: .28; }
.median { stroke: var(--accent); stroke-width: 2.5; }
.mean { fill: var(--paper); stroke: var(--accent); stroke-width: 2; }
.curve { fill: none; stroke: var(--hue); stroke-width: 2; }
.spread { stroke: var(--hue); stroke-width: 1.25; opacity: .6; }
.dot { fill: var(--hue); }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; font-size: .85rem; margin: .25rem 0 1.5rem; }
.key { display: inline-flex; align-items: center; gap: .4rem; }
.key i { width: .7rem; height: .7rem; border-radius: 50%; background: var(--hue); }
.s0 { --hue: #3b72c4; } .s1 { --hue: #d1682b; } .s2 { --hue: #2e9465; } .s3 { --hue: #a3569f; }
.s4 { --hue: #b58a12; } .s5 { --hue: #2b97a8; } .s6 { --hue: #c2485b; } .s7 { --hue: #7a7f87; }
"""
