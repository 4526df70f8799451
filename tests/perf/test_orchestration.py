from typing import Any

import pytest

from perf.orchestration import OrchestrationCost, above, in_turn, markdown, rows_of, summary

COSTS = {
    "function": OrchestrationCost([10.0, 12.0, 11.0], [9.0, 9.0, 9.0]),
    "stage": OrchestrationCost([10.5, 12.25, 11.25], [9.5, 9.0, 9.75]),
    "flow": OrchestrationCost([12.0, 14.0, 13.5], [9.0, 9.0, 9.9]),
}


def rows() -> list[dict[str, Any]]:
    short = {
        "function": OrchestrationCost([1.0], [1.0]),
        "stage": OrchestrationCost([1.3], [1.1]),
        "flow": OrchestrationCost([1.9], [1.2]),
    }
    return rows_of(1, short) + rows_of(16, COSTS)


def test_what_is_more_is_taken_round_by_round() -> None:
    assert above([10.5, 12.25, 11.25], [10.0, 12.0, 11.0]) == 0.25
    assert above([1.0, 5.0], [1.0, 2.0]) == 1.5


def test_a_row_compares_medians_with_the_function() -> None:
    function, stage, flow = rows_of(16, COSTS)
    assert (function["over_bare"], function["seconds_more"]) == (1, 0)
    assert stage["over_bare"] == pytest.approx(11.25 / 11)
    assert stage["over_bare_at_best"] == pytest.approx(10.5 / 10)
    assert stage["processor_over_bare"] == pytest.approx(9.5 / 9)
    assert (flow["seconds"], flow["seconds_more"], flow["processor_seconds_more"]) == (13.5, 2.0, 0.0)


def test_ratios_are_of_long_runs_and_what_is_fixed_of_short_ones() -> None:
    results = summary("small", rows())
    assert results["ratios"] == {
        "orchestration_stage_over_bare_small": pytest.approx(11.25 / 11),
        "orchestration_flow_over_bare_small": pytest.approx(13.5 / 11),
    }
    assert results["seconds_a_stage"] == {"stage": pytest.approx(0.3), "flow": pytest.approx(0.9)}
    assert results["three_percent_from"] == {"stage": pytest.approx(10), "flow": pytest.approx(30)}


def test_the_table() -> None:
    text = markdown({"once": {"import": 2.5}, **summary("small", rows())})
    assert "| 16 | stage | 11.25 | 1.023 | 1.050 | 0.25 | 9.50 | 1.056 | 0.50 |" in text
    assert "import: 2.50 s, once a process" in text
    assert "flow: at most 3% of a run from 30 s on" in text


def test_programs_that_make_different_weights_are_not_compared(tmp_path: Any) -> None:
    folders = {name: tmp_path / name for name in ("function", "stage")}
    for name, folder in folders.items():
        folder.mkdir()
        (folder / "model.safetensors").write_text(name)
    with pytest.raises(AssertionError, match="same weights"):
        in_turn({name: lambda folder=folder: folder for name, folder in folders.items()}, 1)
    (folders["stage"] / "model.safetensors").write_text("function")
    costs = in_turn({name: lambda folder=folder: folder for name, folder in folders.items()}, 2)
    assert [len(cost.wall) for cost in costs.values()] == [2, 2]
