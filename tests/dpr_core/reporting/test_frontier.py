"""Frontiers: lines by KL, what a line has between its points, and the section."""

from dataclasses import replace

import pytest

from dpr_core.reporting.frontier import Reached, as_dict, at_kl, frontier_section, lines, table
from dpr_core.reporting.report import GoldMeasure


def reached(policy: str, line: str, kl: float, value: float, likelihood: float | None = None) -> Reached:
    measure = GoldMeasure("right %", value, value - 0.05, value + 0.05, is_share=True)
    return Reached(policy, line, kl, measure, 0.3, 20.0, likelihood)


POINTS = [
    reached("SFT", "SFT", 0.0, 0.2),
    reached("DPR", "DPR", 0.4, 0.26),
    reached("early", "DPR", 0.1, 0.2),
    reached("extrapolated", "extrapolated", 0.25, 0.22, likelihood=1.5),
    reached("far", "extrapolated", 0.9, 0.1),
]


def test_lines_go_by_kl() -> None:
    assert [point.policy for point in lines(POINTS)["DPR"]] == ["early", "DPR"]
    assert [point["kl"] for point in as_dict({"heldout": POINTS})["heldout"]["extrapolated"]] == [0.25, 0.9]


@pytest.mark.parametrize(("kl", "measure"), [(0.1, 0.2), (0.25, 0.23), (0.4, 0.26), (0.05, None), (0.5, None)])
def test_a_line_is_linear_between_its_points_and_unknown_beyond(kl: float, measure: float | None) -> None:
    there = at_kl(lines(POINTS)["DPR"], kl)
    assert there == (None if measure is None else pytest.approx(measure))


def test_points_of_one_kl_are_no_division_by_zero() -> None:
    line = [reached("a", "DPR", 0.2, 0.3), reached("b", "DPR", 0.2, 0.5)]
    assert at_kl(line, 0.2) == 0.3


def test_the_table_sets_a_control_beside_the_trained_line_at_its_kl() -> None:
    rows = {row[0]: row for row in table(POINTS, "DPR").rows}
    assert rows["extrapolated"][-2:] == ["1.500", "23.0"]
    assert rows["far"][-1] == rows["DPR"][-1] == "–"


def test_there_is_a_section_where_two_policies_have_left_sft() -> None:
    assert frontier_section({"heldout": POINTS[:2]}, "DPR") is None
    found = frontier_section({"heldout": POINTS}, "DPR")
    assert found is not None
    assert "DPR at this KL" in found.markdown
    assert "<svg" in found.html
    assert "<table" in found.html


def test_columns_of_nothing_are_left_out_and_not_explained() -> None:
    apart = [POINTS[0], POINTS[1], POINTS[3], reached("other", "other", 0.5, 0.3)]
    found = frontier_section({"heldout": [replace(point, entropy=None) for point in apart]}, "DPR")
    assert found is not None
    for name in ("Entropy", "entropy", "DPR at this KL", "A line joins"):
        assert name not in found.markdown + found.html
