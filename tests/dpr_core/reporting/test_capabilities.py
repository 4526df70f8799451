"""The capability check: differences from the baseline by prompt, and who loses what while a judge prefers it."""

import numpy as np
import pytest

from dpr_core.evaluation.gold.gsm8k import GOLD
from dpr_core.evaluation.gold.measures import RESAMPLES, Measure
from dpr_core.reporting.capabilities import Difference, capabilities_section, compared, losses
from dpr_core.reporting.tables import NONE

RIGHT = Measure("right", "right %")
REPEATED = Measure("repetition", "repeated 4-grams %", more_is_better=False)


def difference(policy: str, measure: Measure, low: float, high: float, benchmark: str = "gsm8k") -> Difference:
    middle = (low + high) / 2
    return Difference(
        *(policy, benchmark, measure.name, measure.title, 9, 0.5 + middle, 0.5, middle, low, high),
        more_is_better=measure.more_is_better,
    )


def test_differences_are_paired_by_prompt() -> None:
    ours = [{"right": value} for value in (0.0, 1.0, 0.0, 1.0)]
    theirs = [{"right": value} for value in (1.0, 1.0, 1.0, 1.0)]
    (found,) = compared("DPR", "gsm8k", [RIGHT, REPEATED], ours, theirs)
    assert (found.value, found.baseline, found.difference, found.prompts) == (0.5, 1.0, -0.5, 4)
    draws = np.random.default_rng(0).integers(0, 4, (RESAMPLES, 4))
    naive = np.array([-1.0, 0.0, -1.0, 0.0])[draws].mean(axis=1)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(naive, [0.025, 0.975])))
    assert found.points == f"-50.0 [{100 * np.quantile(naive, 0.025):+z.1f}, {100 * np.quantile(naive, 0.975):+z.1f}]"
    same = compared("DPR", "gsm8k", [RIGHT], theirs, theirs)[0]
    assert (same.difference, same.low, same.high, same.is_loss) == (0.0, 0.0, 0.0, False)
    assert compared("DPR", "gsm8k", [RIGHT], ours[:1], theirs[:1])[0].low is None


def test_equations_are_pooled_before_they_are_compared() -> None:
    ours = [{"right": 1.0, "stated": 1.0, "equations": 3.0, "equation_right": 1.0}, {"equations": 0.0}]
    theirs = [{"right": 1.0, "equations": 1.0, "equation_right": 0.0}, {"equations": 1.0, "equation_right": 1.0}]
    found = {each.measure: each for each in compared("DPR", "gsm8k", GOLD.measures, ours, theirs)}
    assert (found["equation_right"].value, found["equation_right"].baseline) == (1.0, 0.5)
    # What one side never did is not compared.
    assert "stated" not in found


def test_a_loss_is_an_interval_on_the_wrong_side_of_nothing() -> None:
    assert difference("DPR", RIGHT, -0.2, -0.1).is_loss
    assert not difference("DPR", RIGHT, -0.2, 0.0).is_loss
    assert not difference("DPR", RIGHT, 0.1, 0.2).is_loss
    assert difference("DPR", REPEATED, 0.1, 0.2).is_loss
    assert not difference("DPR", REPEATED, -0.2, -0.1).is_loss


def test_who_wins_by_the_judge_and_loses_elsewhere_is_named() -> None:
    found = [
        difference("DPR", RIGHT, -0.04, -0.02),
        difference("DPR", REPEATED, 0.1, 0.3, "alpaca_eval"),
        difference("DPR", REPEATED, -0.1, 0.3),
        difference("SR", RIGHT, -0.04, -0.02),
    ]
    assert losses({"DPR": ["alpaca_eval", "lima"]}, found, "SFT") == [
        "DPR wins on alpaca_eval and lima by the judge, but is worse than SFT by what a program measures: "
        "right % -3.0 [-4.0, -2.0] on gsm8k and repeated 4-grams % +20.0 [+10.0, +30.0] on alpaca_eval."
    ]
    assert losses({"SPIN": ["lima"]}, found, "SFT") == []


def test_the_table_has_the_baseline_first_and_a_column_a_measure() -> None:
    assert capabilities_section([], "SFT") is None
    part = capabilities_section(
        [
            difference("DPR", RIGHT, -0.04, -0.02),
            difference("DPR", REPEATED, 0.1, 0.3, "lima"),
            difference("SR", RIGHT, 0.0, 0.02),
        ],
        "SFT",
    )
    assert part is not None
    lines = part.markdown.replace("\\", "").replace(NONE, "-").splitlines()[:7]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows[0] == ["policy", "benchmark", "right %", "repeated 4-grams %"]
    assert rows[2:] == [
        ["SFT", "gsm8k", "50.0", "-"],
        ["DPR", "gsm8k", "47.0, -3.0 [-4.0, -2.0]", "-"],
        ["SR", "gsm8k", "51.0, +1.0 [+0.0, +2.0]", "-"],
        ["SFT", "lima", "-", "50.0"],
        ["DPR", "lima", "-", "70.0, +20.0 [+10.0, +30.0]"],
    ]
