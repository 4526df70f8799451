import re

import pytest

from dpr_core.reporting.charts import COLOURS, Box, ChartPoint, boxes, curves, nice_ticks


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 47, [0, 10, 20, 30, 40, 50]),
        (0.3, 1.0, [0.2, 0.4, 0.6, 0.8, 1.0]),
        (-120, 330, [-200, -100, 0, 100, 200, 300, 400]),
        (7, 7, [6.4, 6.6, 6.8, 7, 7.2, 7.4, 7.6]),
    ],
)
def test_ticks_are_round_and_hold_the_values(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


def numbers(markup: str, tag: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf'<{tag}[^>]* {name}="([-\d.]+)"', markup)]


def test_boxes_lie_where_their_quantiles_are() -> None:
    markup = boxes("Lengths", "tokens", {"SFT": Box(0, 10, 20, 30, 50, 25), "DPR": Box(50, 50, 50, 50, 50, 50)})
    # Ticks run from 0 to 50 between 150 and 660: 10.2 a token.
    assert numbers(markup, "rect", "x") == [252, 660]
    assert numbers(markup, "rect", "width") == [204, 1]
    assert numbers(markup, "circle", "cx") == [405, 660]
    assert re.findall(r'class="label">([^<]+)<', markup) == ["SFT", "25.0", "DPR", "50.0"]
    assert "SFT: mean 25.0, median 20, half between 10 and 30, 90% between 0 and 50 tokens" in markup


def test_a_curve_goes_through_its_points_from_left_to_right() -> None:
    points = [ChartPoint(1.0, 60, 55, 65), ChartPoint(0.5, 50, 45, 60)]
    markup = curves("Win rate", "x", {"DPR": points}, even=50)
    (path,) = re.findall(r'points="([^"]+)"', markup)
    (x1, y1), (x2, y2) = ([float(value) for value in pair.split(",")] for pair in path.split())
    assert x1 < x2
    # Ticks of y run from 45 to 65 between 240 and 10.
    assert (y1, y2) == (182.5, 67.5)
    (even,) = re.findall(r'y1="([\d.]+)"[^>]*class="even"', markup)
    assert float(even) == y1
    assert "DPR: 60.0 [55.0, 65.0] at 1" in markup


def test_more_series_than_colours_start_again() -> None:
    series = {f"p{i}": [ChartPoint(0, 1, 0, 2), ChartPoint(1, 2, 1, 3)] for i in range(COLOURS + 1)}
    assert re.findall(r'<g class="s(\d)">', curves("c", "x", series)) == [*map(str, range(COLOURS)), "0"]


def test_names_are_text_and_long_ones_are_cut_where_there_is_no_room() -> None:
    evil = "<script>alert(1)</script>\u202e"
    markup = boxes(evil, evil, {evil: Box(1, 2, 3, 4, 5, 3)}) + curves(evil, evil, {evil: [ChartPoint(0, 1, 0, 2)]})
    assert "<script" not in markup
    assert "\u202e" not in markup
    assert "&lt;script&gt;alert(1)&lt;\u2026<" in markup
