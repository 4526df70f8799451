import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.image import imread

from dpr_core.reporting import plots
from dpr_core.reporting.plots import HUES, LONGEST, BoxStats, ChartPoint, boxes, curves, forest

POINTS = [(0.9, (55.0, 54.0, 56.0)), (1.0, (60.0, 58.0, 62.0))]


def bands(path: Path, top: float = 60.0) -> None:
    series = {"DPR": [POINTS[0], (1.0, (top, 58.0, 62.0))], "SFT": POINTS}
    plots.bands(path, "t", "gamma", {"win": series, "gap": {"SFT": POINTS}}, {"win": 50.0})


def bars(path: Path, top: float = 60.0) -> None:
    plots.bars(
        path, "t", "win", {"a": {"DPR": (top, 58.0, 62.0), "SR": (55.0, 54.0, 56.0)}, "b": {"SR": (1, 1, 1)}}, even=50
    )


@pytest.mark.parametrize("draw", [bands, bars])
def test_the_bytes_depend_on_the_numbers_alone(draw: Callable[..., None], tmp_path: Path) -> None:
    first, again, other = (tmp_path / "deep" / f"{i}.png" for i in range(3))
    draw(first)
    draw(again)
    draw(other, top=61.0)
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()
    assert imread(first).shape[1] == 840


@pytest.fixture
def figure(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    drawn: list[Figure] = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    inline = plots._inline
    monkeypatch.setattr(plots, "_inline", lambda figure, label: (drawn.append(figure), inline(figure, label))[1])
    return drawn


def test_bands_show_values_and_intervals(figure: list[Figure], tmp_path: Path) -> None:
    bands(tmp_path / "x.png")
    first, second = figure[0].axes
    assert [line.get_label() for line in first.get_lines()][:2] == ["DPR", "SFT"]
    assert first.get_lines()[0].get_xydata().tolist() == [[0.9, 55.0], [1.0, 60.0]]
    low, high = (getattr(first.collections[0].get_paths()[0].vertices[:, 1], m)() for m in ("min", "max"))
    assert (low, high) == (54.0, 62.0)
    assert first.get_lines()[2].get_ydata() == [50.0, 50.0]
    (legend,) = figure[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["DPR", "SFT"]
    assert second.get_lines()[0].get_color() == first.get_lines()[1].get_color()


def test_an_axis_is_logarithmic_from_where_it_is_asked_to_be(figure: list[Figure], tmp_path: Path) -> None:
    panel = {"SFT": [(at, (1.0, 1.0, 1.0)) for at in (0.0, 0.05, 0.1, 1.0)]}
    plots.bands(tmp_path / "x.png", "KL", "KL", {"right": panel}, linear_to=0.1)
    (axes,) = figure[0].axes
    at = [axes.transData.transform((x, 1.0))[0] for x in (0.0, 0.05, 0.1, 1.0, 10.0)]
    assert at[1] - at[0] == pytest.approx(at[2] - at[1])
    assert at[3] - at[2] == pytest.approx(at[4] - at[3])


def test_no_two_of_many_bands_look_alike(figure: list[Figure], tmp_path: Path) -> None:
    panel = {f"series {i}": [(0.0, (1.0, 1.0, 1.0))] for i in range(30)}
    plots.bands(tmp_path / "x.png", "Many", "KL", {"right": panel})
    (axes,) = figure[0].axes
    assert len({(line.get_color(), line.get_marker()) for line in axes.get_lines()}) == 30
    (legend,) = figure[0].legends
    assert len(legend.get_texts()) == 30
    figure[0].draw_without_rendering()
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    assert axes.get_window_extent().height > 200


def test_bars_of_one_name_have_one_colour_and_stand_in_their_group(figure: list[Figure], tmp_path: Path) -> None:
    bars(tmp_path / "x.png")
    (axes,) = figure[0].axes
    dpr, sr = (list(container) for container in axes.containers if hasattr(container, "patches"))
    assert [bar.get_height() for bar in dpr] == [60.0]
    assert [bar.get_height() for bar in sr] == [55.0, 1.0]
    centres = [bar.get_x() + bar.get_width() / 2 for bar in (*dpr, *sr)]
    assert centres == pytest.approx([-0.2, 0.2, 1.2])
    assert len({bar.get_facecolor() for bar in sr}) == 1


def test_a_dollar_sign_in_a_name_is_no_formula(tmp_path: Path) -> None:
    name = r"$\nosuchcommand{$"
    plots.bars(tmp_path / "x.png", name, name, {name: {name: POINTS[0][1], f"{name}2": POINTS[1][1]}})
    assert imread(tmp_path / "x.png").size > 0


def titles(markup: Markup, kind: str) -> list[str | None]:
    return [group.findtext("title") for group in ElementTree.fromstring(markup).iter("g") if group.get("class") == kind]


def test_boxes_lie_where_their_quantiles_are(figure: list[Figure]) -> None:
    markup = boxes(
        "Lengths", "tokens", {"SFT": BoxStats(0, 10, 20, 30, 50, 25), "DPR": BoxStats(50, 50, 50, 50, 50, 50)}
    )
    (axes,) = figure[0].axes
    sft, dpr = (patch.get_path().get_extents() for patch in axes.patches)
    assert (sft.x0, sft.x1, dpr.x0, dpr.x1) == (10, 30, 50, 50)
    whiskers = [line.get_xdata().tolist() for line in axes.get_lines()]
    assert [10, 0] in whiskers
    assert [30, 50] in whiskers
    assert [25] in whiskers
    assert re.findall(r">(SFT|DPR|25\.0|50\.0)</text>", markup) == ["SFT", "DPR", "25.0", "50.0"]
    assert titles(markup, "box") == [
        "SFT: mean 25.0, median 20, half between 10 and 30, 90% between 0 and 50 tokens",
        "DPR: mean 50.0, median 50, half between 50 and 50, 90% between 50 and 50 tokens",
    ]


def test_a_curve_goes_through_its_points_from_left_to_right(figure: list[Figure]) -> None:
    points = [ChartPoint(1.0, 60, 55, 65), ChartPoint(0.5, 50, 45, 60)]
    markup = curves("Win rate", "x", {"DPR": points}, even=50)
    (axes,) = figure[0].axes
    assert axes.get_lines()[0].get_xydata().tolist() == [[0.5, 50], [1.0, 60]]
    assert [part.tolist() for part in axes.collections[0].get_segments()] == [
        [[0.5, 45], [0.5, 60]],
        [[1, 55], [1, 65]],
    ]
    assert axes.get_lines()[-1].get_ydata() == [50, 50]
    assert titles(markup, "dot") == ["DPR: 50.0 [45.0, 60.0] at 0.5", "DPR: 60.0 [55.0, 65.0] at 1"]


def test_points_too_few_for_a_trend_are_not_joined(figure: list[Figure]) -> None:
    points = [ChartPoint(x, 50, 45, 60) for x in (0.0, 1.0, 2.0)]
    curves("c", "x", {"two": points[:2], "three": points}, joined_from=3)
    drawn = [line for line in figure[0].axes[0].get_lines() if len(line.get_xdata()) > 1]
    assert [line.get_linestyle() for line in drawn] == ["None", "-"]


def test_a_forest_has_every_interval_and_its_number(figure: list[Figure]) -> None:
    markup = forest("Win rates", "%", {"DPR": (60.0, 55.0, 65.0), "SR": (50.0, 45.0, 55.0)}, even=50)
    first, _, second, *_ = figure[0].axes[0].get_lines()
    assert (first.get_xydata().tolist(), second.get_xydata().tolist()) == ([[55, 0], [65, 0]], [[45, 1], [55, 1]])
    assert titles(markup, "dot") == ["DPR: 60.0 [55.0, 65.0] %", "SR: 50.0 [45.0, 55.0] %"]


def test_more_series_than_colours_start_again(figure: list[Figure]) -> None:
    curves("c", "x", {f"p{i}": [ChartPoint(0, 1, 0, 2), ChartPoint(1, 2, 1, 3)] for i in range(len(HUES) + 1)})
    lines = [line.get_color() for line in figure[0].axes[0].get_lines() if len(line.get_xdata()) == 2]
    assert lines == [*HUES, HUES[0]]


def test_names_in_a_page_are_text_and_long_ones_are_cut_where_there_is_no_room() -> None:
    evil = "<script>alert(1)</script>\"'|\u202e\x00\ud800$x_"
    points = [ChartPoint(0, 1, 0, 2)]
    markup = boxes(evil, evil, {evil: BoxStats(1, 2, 3, 4, 5, 3)}) + curves(evil, evil, {evil: points, "b": points})
    assert "<script" not in markup
    assert not {"\u202e", "\x00", "\ud800"} & set(markup)
    assert f"&lt;script&gt;{evil[8 : LONGEST - 2]}&lt;\u2026<" in markup
    charts = [ElementTree.fromstring(part + "</svg>") for part in str(markup).split("</svg>")[:2]]
    assert all(chart.get("aria-label", "").startswith("<script>alert(1)</script>") for chart in charts)


def test_a_chart_in_a_page_has_no_style_of_its_own_and_takes_the_pages_ink() -> None:
    rows = {"SFT": BoxStats(0, 10, 20, 30, 50, 25)}
    first, again, other = (boxes("l", "tokens", each) for each in (rows, dict(rows), {"DPR": rows["SFT"]}))
    assert first == again != other
    assert not re.search(r"style|http|xmlns|<!|#000000", first)
    assert 'stroke="currentColor"' in first
    ids = re.findall(r' id="([^"]+)"', first)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'#(\w+)(?:"|\))', first)) - {hue[1:] for hue in (*HUES, "#b0b0b0")} == set(ids)


def test_matplotlib_is_imported_by_the_first_plot() -> None:
    code = (
        "import sys, dpr_core.reporting.sections; sys.exit(bool({'matplotlib', 'jinja2', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(plots.__file__).parents[2]).returncode == 0
