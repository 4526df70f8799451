import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dpr_core.diagnostics import verdict
from dpr_core.diagnostics.auroc import AurocEstimate, Correctness
from dpr_core.diagnostics.corruption import Detection
from dpr_core.diagnostics.measure import Diagnosis
from dpr_core.diagnostics.verdict import Level, assess

CHECKED = Correctness(
    40, 5, 3, 0.6, AurocEstimate(0.82, 0.74, 0.89), AurocEstimate(0.9, 0.85, 0.95), AurocEstimate(0.7, 0.6, 0.8)
)
GOOD = Diagnosis(
    answers=320,
    cut_share=0.0,
    token_deviation=0.2,
    noise_log_sft=1e-6,
    noise_reward=2e-6,
    length_correlation=0.3,
    end_advantage=-0.4,
    top_share=0.1,
    corrupted=500,
    credit=Detection(0.8, 0.6),
    credit_log_sft=Detection(0.97, 0.15),
    correctness=CHECKED,
    by_position=[(0.0, 0.1)],
    by_length=[(10.0, 1.0)],
)


def test_a_sound_reward_goes() -> None:
    found = assess(GOOD)
    assert found.level == Level.GO
    assert found.sentence == "go: nothing that was measured speaks against this reward."
    assert {reason.level for reason in found.reasons} == {Level.GO}


def checked(value: float, low: float, high: float, all_right: int = 5) -> Correctness:
    return replace(CHECKED, of_return=AurocEstimate(value, low, high), all_right=all_right)


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"noise_reward": 0.021}, Level.CAUTION, "0.1 of its deviation"),
        ({"noise_reward": 0.11}, Level.STOP, "0.55 of its deviation"),
        ({"token_deviation": 0.0}, Level.STOP, "the same everywhere"),
        ({"correctness": checked(0.42, 0.35, 0.49)}, Level.STOP, "0.42 [0.35, 0.49]"),
        ({"correctness": checked(0.52, 0.44, 0.6)}, Level.CAUTION, "0.52 [0.44, 0.60]"),
        ({"correctness": checked(0.8, 0.7, 0.9, all_right=28)}, Level.CAUTION, "Only 9 of 40 prompts"),
        ({"correctness": replace(CHECKED, of_return=None)}, Level.CAUTION, "too few"),
        ({"credit": Detection(0.55, 0.1)}, Level.CAUTION, "AUROC of 0.55"),
        ({"credit": Detection(0.45, 0.1)}, Level.STOP, "AUROC of 0.45"),
        ({"credit": Detection(0.45, 0.1), "corrupted": 99}, Level.CAUTION, "AUROC of 0.45"),
        ({"credit": None}, Level.CAUTION, "not measured"),
        ({"length_correlation": 0.9, "correctness": None}, Level.CAUTION, "by 0.90"),
        ({"length_correlation": -0.9, "correctness": None}, Level.CAUTION, "by -0.90"),
        ({"end_advantage": -1.5}, Level.CAUTION, "-1.50 deviations, which presses for longer answers"),
        ({"end_advantage": 1.5}, Level.CAUTION, "1.50 deviations, which presses for shorter answers"),
        ({"cut_share": 0.6}, Level.CAUTION, "60%"),
        ({"top_share": 0.7}, Level.CAUTION, "hold 70%"),
    ],
)
def test_each_reason_has_its_number(changes: dict[str, Any], level: Level, words: str) -> None:
    found = assess(replace(GOOD, **changes))
    assert found.level == level
    [reason] = [reason for reason in found.reasons if reason.level == level]
    assert words in reason.text
    assert found.sentence == f"{level.word}: {reason.text}"


@pytest.mark.parametrize("length_correlation", [-0.9, 0.9])
def test_a_return_that_follows_correctness_may_follow_length(length_correlation: float) -> None:
    found = assess(replace(GOOD, length_correlation=length_correlation))
    assert found.level == Level.GO
    assert any(f"{length_correlation:.2f}; it follows correctness too" in reason.text for reason in found.reasons)
    unclear = assess(replace(GOOD, length_correlation=length_correlation, correctness=checked(0.52, 0.44, 0.6)))
    assert [reason.level for reason in unclear.reasons].count(Level.CAUTION) == 2


def test_what_could_not_be_checked_is_said_and_no_obstacle() -> None:
    found = assess(replace(GOOD, correctness=None))
    assert found.level == Level.GO
    assert any("was not measured" in reason.text for reason in found.reasons)


def test_the_gravest_reason_decides() -> None:
    found = assess(replace(GOOD, noise_reward=0.2, top_share=0.7))
    assert found.level == Level.STOP
    assert "top 1%" not in found.sentence


def test_the_documentation_gives_the_thresholds() -> None:
    page = (Path(__file__).parents[3] / "docs" / "diagnostics.md").read_text(encoding="utf-8")
    stated = {name: float(value) for name, value in re.findall(r"`([A-Z]+_[A-Z]+)` = ([\d.]+)", page)}
    assert stated == {name: getattr(verdict, name) for name in dir(verdict) if re.fullmatch(r"[A-Z]+_[A-Z]+", name)}
