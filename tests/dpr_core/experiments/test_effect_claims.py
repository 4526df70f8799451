import json
import math
from collections.abc import Callable

import pytest
from scipy import stats

from dpr_core.experiments.effect_claims import ClaimVerdict, EffectClaim, corrected, outcome, verdict_on
from dpr_core.experiments.exhibits import DPR, SFT, select
from dpr_core.experiments.observations import TOKENS, Observation

Runs = Callable[..., list[Observation]]

BETTER = EffectClaim("DPR > SR", "DPR beats SR.", DPR, select("SR"))
SAME = EffectClaim("PPO = SR", "They are the same.", select("PPO"), select("SR"), margin=2.0)


@pytest.mark.parametrize(
    ("effect", "p_value", "expected"),
    [(2.0, 0.049, "reproduced"), (-2.0, 0.049, "not reproduced"), (2.0, 0.05, "undecided"), (2.0, None, "undecided")],
)
def test_a_direction_is_decided_by_the_adjusted_p_value(effect: float, p_value: float | None, expected: str) -> None:
    assert outcome(effect, (0.5, 3.5), p_value) == expected


@pytest.mark.parametrize(
    ("interval", "p_value", "expected"),
    [
        ((-1.9, 1.9), 0.02, "reproduced"),
        ((1.0, 3.0), 0.5, "undecided"),
        ((2.1, 3.0), 0.99, "not reproduced"),
        ((-3.0, -2.1), 0.99, "not reproduced"),
        (None, None, "undecided"),
    ],
)
def test_equality_is_decided_within_its_margin(
    interval: tuple[float, float] | None, p_value: float | None, expected: str
) -> None:
    assert outcome(0.0, interval, p_value, margin=2.0) == expected


def test_p_values_are_scipys_and_more_claims_ask_for_smaller_ones(runs: Runs) -> None:
    seen = (
        runs("DPR", [51.0, 72.0, 93.0, 64.0])
        + runs("SR", [50.0, 70.0, 90.0, 60.0])
        + runs("PPO", [50.0, 71.0, 89.0, 60.0])
    )
    better, same = verdict_on(BETTER, seen), verdict_on(SAME, seen)
    assert better.p_value == pytest.approx(stats.ttest_1samp([1, 2, 3, 4], 0).pvalue)
    sides = [stats.ttest_1samp([0, 1, -1, 0], at, alternative=way) for at, way in ((-2, "greater"), (2, "less"))]
    assert same.p_value == pytest.approx(max(each.pvalue for each in sides))
    assert (better.verdict, better.adjusted) == ("reproduced", better.p_value)

    none = ClaimVerdict("absent", "paper", "not run", None, None, 0, "points")
    together = corrected([better, none, better, same])
    assert better.p_value is not None
    assert same.p_value is not None
    assert [each.adjusted for each in together if each is not together[1]] == pytest.approx(
        [2 * better.p_value, 2 * better.p_value, 3 * same.p_value]
    )
    assert [each.verdict for each in together] == ["undecided", "not run", "undecided", "reproduced"]


def test_the_effect_is_paired_by_seed(runs: Runs) -> None:
    # Differences 2, 4 and 6: mean 4, deviation 2, and t of 2 degrees of freedom is 4.3027 at 97.5%.
    seen = runs("DPR", [60.0, 70.0, 80.0]) + runs("SR", [58.0, 66.0, 74.0])
    found = verdict_on(BETTER, seen)
    half = 4.302653 * 2 / math.sqrt(3)
    assert found.effect == pytest.approx(4)
    assert found.interval == pytest.approx((4 - half, 4 + half))
    assert (found.verdict, found.seeds, found.unit) == ("undecided", 3, "points")


def test_the_order_of_observations_does_not_matter(runs: Runs) -> None:
    seen = runs("DPR", [60.0, 70.0, 80.0]) + runs("SR", [58.0, 66.0, 74.0])
    assert verdict_on(BETTER, seen[::-1]).effect == pytest.approx(4)


def test_equal_values_have_no_effect_however_many_and_in_whatever_order(runs: Runs) -> None:
    # 0.1 + 0.2 + 0.3 depends on the order of the terms, and a third of 0.1 + 0.1 + 0.1 is not 0.1.
    claim = EffectClaim("a = b", "", select("a"), select("b"))
    same = [each for at in range(3) for each in runs("a", [0.1, 0.1], {"x": at})] + runs("b", [0.1, 0.1])
    assert (verdict_on(claim, same).effect, verdict_on(claim, same).verdict) == (0.0, "undecided")
    seen = [each for at in (0.1, 0.2, 0.3) for each in runs("a", [at, 2 * at], {"x": at})] + runs("b", [0.0, 0.0])
    assert verdict_on(claim, seen) == verdict_on(claim, seen[::-1])


def test_a_seed_that_lacks_a_setting_of_one_side_is_left_out(runs: Runs) -> None:
    claim = EffectClaim("one > the others", "", select("one"), select("other"))
    seen = [*runs("one", [60.0, 60.0, 60.0]), *runs("other", [50.0, 50.0, 50.0], {"x": 1})]
    seen += runs("other", [40.0, 40.0], {"x": 2})
    found = verdict_on(claim, seen)
    assert (found.effect, found.seeds) == (pytest.approx(15.0), 2)


def test_a_common_shift_of_a_seed_cancels(runs: Runs) -> None:
    # Unpaired, seeds this far apart would decide nothing.
    found = verdict_on(BETTER, runs("DPR", [51.0, 71.1, 90.9]) + runs("SR", [50.0, 70.0, 90.0]))
    assert found.verdict == "reproduced"
    assert found.effect == pytest.approx(1.0)


def test_only_seeds_with_both_sides_count(runs: Runs) -> None:
    found = verdict_on(BETTER, runs("DPR", [60.0, 61.0, 62.0]) + runs("SR", [50.0, 50.5]))
    assert found.seeds == 2


def test_unreadable_win_rates_leave_their_seed_out(runs: Runs) -> None:
    found = verdict_on(BETTER, runs("DPR", [60.0, None, 62.0]) + runs("SR", [50.0, 50.0, 50.0]))
    assert (found.seeds, found.effect) == (2, pytest.approx(11.0))


def test_models_from_different_sft_runs_are_not_paired(runs: Runs) -> None:
    seen = runs("DPR", [60.0, 61.0]) + runs("SR", [50.0, 50.0], sft=["sft0", "other"])
    assert verdict_on(BETTER, seen).seeds == 1


def test_one_seed_has_an_effect_and_no_verdict(runs: Runs) -> None:
    found = verdict_on(BETTER, runs("DPR", [90.0]) + runs("SR", [50.0]))
    assert (found.verdict, found.effect, found.interval, found.seeds) == ("undecided", 40.0, None, 1)


def test_absent_policies_are_not_run(runs: Runs) -> None:
    found = verdict_on(BETTER, runs("DPR", [60.0, 61.0]))
    assert (found.verdict, found.effect, found.interval, found.seeds) == ("not run", None, None, 0)


def test_several_benchmarks_are_averaged_within_a_seed(runs: Runs) -> None:
    seen = [
        *runs("DPR", [60.0, 61.0], benchmark="a"),
        *runs("DPR", [70.0, 71.0], benchmark="b"),
        *runs("SR", [50.0, 50.0], benchmark="a"),
        *runs("SR", [50.0, 50.0], benchmark="b"),
    ]
    found = verdict_on(BETTER, seen)
    assert (found.effect, found.seeds) == (pytest.approx(15.5), 2)


def test_equality_has_its_margin_in_the_verdict(runs: Runs) -> None:
    close = verdict_on(SAME, runs("PPO", [50.1, 60.2, 55.0]) + runs("SR", [50.0, 60.0, 55.1]))
    far = verdict_on(SAME, runs("PPO", [60.0, 70.1, 64.9]) + runs("SR", [50.0, 60.0, 55.0]))
    assert (close.verdict, close.margin) == ("reproduced", 2.0)
    assert far.verdict == "not reproduced"


def test_accuracy_stands_beside_the_win_rate(runs: Runs, sft: Runs) -> None:
    claim = EffectClaim("DPR > SFT", "", DPR, SFT)
    seen = runs("DPR", [60.0, 62.0], accuracy=[0.8, 0.9]) + sft(2, accuracy=[0.6, 0.6])
    found = verdict_on(claim, seen)
    assert found.effect == pytest.approx(11)
    assert found.accuracy_effect == pytest.approx(25)
    # Differences 20 and 30: deviation sqrt(50), and t of 1 degree of freedom is 12.706.
    assert found.accuracy_interval == pytest.approx((25 - 12.7062 * 5, 25 + 12.7062 * 5), rel=1e-5)


def test_an_effect_of_another_quantity_has_no_accuracy_beside_it(runs: Runs, sft: Runs) -> None:
    claim = EffectClaim("short", "", SFT, DPR, quantity=TOKENS)
    seen = runs("DPR", [60.0, 62.0], accuracy=0.8, response_tokens=[10.0, 12.0]) + sft(2, accuracy=0.6)
    found = verdict_on(claim, seen)
    assert (found.effect, found.accuracy_effect, found.unit) == (pytest.approx(29.0), None, "tokens")


def test_json_holds_all_of_a_verdict(runs: Runs) -> None:
    found = verdict_on(SAME, runs("PPO", [50.1, 60.2]) + runs("SR", [50.0, 60.0]))
    values = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert {"claim", "verdict", "effect", "interval", "seeds"} <= set(values)
    assert ClaimVerdict.of(values) == found
