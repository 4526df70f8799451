from dataclasses import asdict
from pathlib import Path

import pytest

from perf import growth
from perf.growth import WORKS, GrowthPoint, exponent, exponents, grown, markdown, measured, plot


def row(work: str, axis: str, size: int, seconds: float, peak: float) -> dict[str, object]:
    return {"work": work, "axis": axis, axis: size, "seconds": seconds, "peak_bytes": peak}


def test_the_exponent_of_a_power() -> None:
    assert exponent([1, 2, 4], [3, 6, 12]) == pytest.approx(1)
    assert exponent([10, 30, 90, 270], [7 * size**2 for size in (10, 30, 90, 270)]) == pytest.approx(2)
    assert exponent([16, 32, 64], [5, 5, 5]) == pytest.approx(0)


def test_the_exponent_is_the_slope_with_the_least_squares() -> None:
    # In powers of two: (0, 0), (1, 2), (2, 1), whose line has the slope 1/2.
    assert exponent([1, 2, 4], [1, 4, 2]) == pytest.approx(0.5)


ROWS = [
    row("scoring", "batch", 8, 9.0, 100e6),
    row("scoring", "batch", 16, 1.0, 2e6),
    row("scoring", "batch", 32, 2.0, 2e6),
    row("scoring", "batch", 64, 4.0, 2e6),
    row("rollout", "batch", 16, 3.0, 4e6),
    row("rollout", "batch", 32, 3.0, 8e6),
    row("rollout", "response", 32, 1.0, 1e6),
    row("rollout", "response", 64, 4.0, 1e6),
]


def test_exponents_are_of_the_last_three_points_of_each_curve() -> None:
    found = {(e["work"], e["axis"]): (round(e["seconds"], 9), round(e["peak_bytes"], 9)) for e in exponents(ROWS)}
    assert found == {("scoring", "batch"): (1, 0), ("rollout", "batch"): (0, 1), ("rollout", "response"): (2, 0)}


def test_the_table_has_a_line_for_each_curve() -> None:
    lines = markdown({"rows": ROWS, "exponents": exponents(ROWS)}).splitlines()
    assert len(lines) == 2 + 3
    assert lines[2] == "| scoring | batch | 8, 64 | 9.00, 1.00, 2.00, 4.00 | 100, 2, 2, 2 | 1.00 | 0.00 |"


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    plot(ROWS, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_all_that_can_grow_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def once(name: str, point: GrowthPoint, repeats: int) -> tuple[float, int]:
        made_ready, _ = WORKS[name]
        made_ready(point)()
        done.append(point)
        return 1.5, 7

    monkeypatch.setattr(growth, "measured", once)
    monkeypatch.setattr(growth, "SHARED", 3)
    axes = {"response": (4,), "batch": (2,), "vocabulary": (64,), "data": (4,), "processes": (2,)}
    rows = grown(axes, 1, GrowthPoint(response=4, batch=2, vocabulary=64, data=4))
    assert [(r["work"], r["axis"]) for r in rows] == [
        (work, axis) for work, (_, along) in WORKS.items() for axis in axes if axis in along
    ]
    assert rows == [
        row(r["work"], r["axis"], r[r["axis"]], 1.5, 7) | asdict(point) for r, point in zip(rows, done, strict=True)
    ]
    assert {point.batch for point in done if point.processes == 2} == {3}


@pytest.mark.slow
def test_processes_that_share_the_work_are_measured_together() -> None:
    assert min(measured("scoring", GrowthPoint(response=4, batch=64, vocabulary=64, processes=2), 1)) > 0
