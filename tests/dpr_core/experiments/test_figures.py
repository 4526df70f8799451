from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from dpr_core.experiments import figures
from dpr_core.experiments.exhibits import EXHIBITS, GAMMA, REFERENCE, SWEEP, TEMPERATURE
from dpr_core.experiments.observations import Observation, Position
from dpr_core.reporting import plots

Runs = Callable[..., list[Observation]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, ...]]:
    """The arguments of each plot, by its file's name."""
    calls: dict[str, tuple[Any, ...]] = {}
    for kind in ("bands", "bars", "intervals"):
        monkeypatch.setattr(plots, kind, lambda path, *args, **more: calls.update({path.name: (*args, more)}))
    return calls


def test_policies_without_a_sweep_are_a_forest(runs: Runs, sft: Runs, drawn: Mapping[str, Any]) -> None:
    seen = [*sft(2, accuracy=[0.5, 0.6]), *runs("DPR", [60.0, 60.2], accuracy=0.8), *runs("SR", [55.0, 55.2])]
    assert list(figures.draw(EXHIBITS["table1"], seen, Path()).values()) == ["win_rate.png", "accuracy.png"]
    rows, more = drawn["win_rate.png"][1:]
    assert [row[0] for row in rows] == ["DPR", "SR"]
    assert rows[0][1:] == pytest.approx((60.1, 60.1 - 1.2706, 60.1 + 1.2706), abs=1e-3)
    assert more == {"even": 50.0}
    assert [row[0] for row in drawn["accuracy.png"][1]] == ["SFT", "DPR"]
    assert drawn["accuracy.png"][2] == {"even": pytest.approx(55.0)}


def test_numbers_are_curves_with_what_the_exhibit_shows(runs: Runs, sft: Runs, drawn: Mapping[str, Any]) -> None:
    gap = {"reward/value_gap_rms": 0.5}
    seen = [
        *runs("DPR", [61.0], {REFERENCE: 0.5}, metrics=gap),
        *sft(1, {REFERENCE: 0.5}),
        *runs("DPR", [60.0], {REFERENCE: 0.25}, metrics=gap),
    ]
    figures.draw(EXHIBITS["figure3"], seen, Path())
    _, x_label, panels, even, _ = drawn["curves.png"]
    assert x_label == "reference"
    assert panels["win rate %"] == {"DPR": [(0.25, (60.0, 60.0, 60.0)), (0.5, (61.0, 61.0, 61.0))]}
    assert panels["rms of V_SFT - V_ref"]["DPR"][0] == (0.25, (0.5, 0.5, 0.5))
    assert even == {"win rate %": 50.0}


def test_lengths_are_drawn_over_the_temperature(runs: Runs, drawn: Mapping[str, Any]) -> None:
    seen = [each for t in (0.3, 0.7) for each in runs("DPR", [60.0], {TEMPERATURE: t}, response_tokens=40.0 + t)]
    figures.draw(EXHIBITS["figure4b"], seen, Path())
    panels = drawn["curves.png"][2]
    assert list(panels) == ["win rate %", "tokens"]
    assert panels["tokens"]["DPR"] == [(0.3, (40.3,) * 3), (0.7, (40.7,) * 3)]


def test_a_second_field_and_benchmarks_name_the_series(runs: Runs, drawn: Mapping[str, Any]) -> None:
    seen = [
        each
        for gamma in (0.9, 0.95, 1.0)
        for rate in (1e-4, 1e-5)
        for on in ("a", "b")
        for each in runs("DPR", [60.0], {GAMMA: gamma, "reinforce.learning_rate": rate}, benchmark=on)
    ]
    figures.draw(SWEEP, seen, Path())
    assert list(drawn["curves.png"][2]["win rate %"]) == [
        "DPR (a) learning_rate=0.0001",
        "DPR (b) learning_rate=0.0001",
        "DPR (a) learning_rate=1e-05",
        "DPR (b) learning_rate=1e-05",
    ]


def test_words_are_bars(runs: Runs, drawn: Mapping[str, Any]) -> None:
    seen = [*runs("DPR", [60.0], {REFERENCE: "ema"}), *runs("DPR", [61.0], {REFERENCE: 0.5})]
    figures.draw(SWEEP, seen, Path())
    assert drawn["bars.png"][2] == {"reference=ema": {"DPR": (60.0,) * 3}, "reference=0.5": {"DPR": (61.0,) * 3}}


def test_figure1_sets_r_beside_log_pi(runs: Runs, drawn: Mapping[str, Any]) -> None:
    names = ("credit_auroc", "credit_top1", "credit_log_sft_auroc", "credit_log_sft_top1")
    metrics = {f"diagnose/{name}": value for name, value in zip(names, (0.8, 0.6, 0.9, 0.2), strict=True)}
    figures.draw(EXHIBITS["figure1"], runs("DPR", [60.0], metrics=metrics), Path())
    assert drawn["detection.png"][2] == {
        "AUROC": {"r": (0.8,) * 3, "log pi_SFT": (0.9,) * 3},
        "top-1": {"r": (0.6,) * 3, "log pi_SFT": (0.2,) * 3},
    }


def test_figure4a_draws_what_enough_answers_reach(runs: Runs, sft: Runs, drawn: Mapping[str, Any]) -> None:
    whole = (Position(0, 100, 0.4, 0.3), Position(1, 10, 0.2, 0.1), Position(2, 9, 9.0, 9.0))
    figures.draw(
        EXHIBITS["figure4a"], [*runs("DPR", [60.0], {GAMMA: 0.95}, profile=whole), *sft(1, {GAMMA: 1.0})], Path()
    )
    assert drawn["by_position.png"][2] == {
        "KL to SFT (nats)": {"gamma=0.95": [(0.0, (0.4, 0.4, 0.4)), (1.0, (0.2, 0.2, 0.2))]},
        "token reward": {"gamma=0.95": [(0.0, (0.3, 0.3, 0.3)), (1.0, (0.1, 0.1, 0.1))]},
    }


@pytest.mark.parametrize("name", ["figure1", "figure4a", "table1"])
def test_what_was_not_measured_is_not_drawn(name: str, runs: Runs, drawn: Mapping[str, Any]) -> None:
    assert figures.draw(EXHIBITS[name], runs("DPR", [None]), Path()) == {}
    assert not drawn


def test_the_same_observations_are_the_same_bytes(runs: Runs, tmp_path: Path) -> None:
    seen = [*runs("DPR", [60.0, 61.0], {GAMMA: 0.95}), *runs("DPR", [60.0, 62.0], {GAMMA: 1.0})]
    (file,) = figures.draw(EXHIBITS["figure2"], seen, tmp_path / "a").values()
    figures.draw(EXHIBITS["figure2"], seen, tmp_path / "b")
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_benchmarks_are_apart_by_position(runs: Runs, drawn: Mapping[str, Any]) -> None:
    profile = (Position(0, 2, 0.2, 0.2), Position(1, 2, 0.1, 0.1))
    seen = [each for on in ("a", "b") for each in runs("DPR", [60.0], {GAMMA: 1.0}, benchmark=on, profile=profile)]
    figures.draw(EXHIBITS["figure4a"], seen, Path())
    assert {name for panel in drawn["by_position.png"][2].values() for name in panel} == {"gamma=1 (a)", "gamma=1 (b)"}


def test_a_second_benchmark_is_no_second_measurement_of_the_reward(runs: Runs, drawn: Mapping[str, Any]) -> None:
    metrics = [{"diagnose/credit_auroc": 0.7}, {"diagnose/credit_auroc": 0.9}]
    seen = [each for on in ("a", "b") for each in runs("DPR", [60.0, 60.0], benchmark=on, metrics=metrics)]
    figures.draw(EXHIBITS["figure1"], seen, Path())
    # The mean of two seeds: deviation sqrt(0.02), and t of 1 degree of freedom is 12.706.
    assert drawn["detection.png"][2]["AUROC"]["r"] == pytest.approx((0.8, 0.8 - 1.2706, 0.8 + 1.2706), abs=1e-4)
