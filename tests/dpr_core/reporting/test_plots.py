from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from dpr_core.reporting import plots

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
    return drawn


def test_bands_show_values_and_intervals(figure: list[Figure], tmp_path: Path) -> None:
    bands(tmp_path / "x.png")
    first, second = figure[0].axes
    assert [line.get_label() for line in first.get_lines()][:2] == ["DPR", "SFT"]
    assert first.get_lines()[0].get_xydata().tolist() == [[0.9, 55.0], [1.0, 60.0]]
    low, high = (getattr(first.collections[0].get_paths()[0].vertices[:, 1], m)() for m in ("min", "max"))
    assert (low, high) == (54.0, 62.0)
    assert first.get_lines()[2].get_ydata() == [50.0, 50.0]
    assert first.get_legend() is not None
    assert second.get_legend() is None
    assert second.get_lines()[0].get_color() == first.get_lines()[1].get_color()


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
