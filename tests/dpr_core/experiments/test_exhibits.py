from collections.abc import Callable
from typing import get_args

import pytest

from dpr_core.config.pipeline import ExhibitName
from dpr_core.experiments import observations as q
from dpr_core.experiments.exhibits import EXHIBITS, GAMMA, REFERENCE, TEMPERATURE, Exhibit, exhibit_named
from dpr_core.experiments.observations import Observation, Position

Runs = Callable[..., list[Observation]]


def verdicts(exhibit: Exhibit, seen: list[Observation]) -> dict[str, str]:
    return {each.claim: each.verdict for each in exhibit.verdicts(seen)}


def effects(exhibit: Exhibit, seen: list[Observation]) -> dict[str, float | None]:
    return {each.claim: each.effect for each in exhibit.verdicts(seen)}


def test_names_are_those_of_the_settings() -> None:
    assert ("sweep", *EXHIBITS) == get_args(ExhibitName)
    assert [exhibit_named(name).name for name in get_args(ExhibitName)] == list(get_args(ExhibitName))


@pytest.mark.parametrize("exhibit", EXHIBITS.values(), ids=EXHIBITS)
def test_without_observations_nothing_was_run(exhibit: Exhibit) -> None:
    assert set(verdicts(exhibit, []).values()) == {"not run"}


def test_a_claims_name_says_which_it_is() -> None:
    names = [claim.name for exhibit in EXHIBITS.values() for claim in exhibit.claims]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("exhibit", EXHIBITS.values(), ids=EXHIBITS)
def test_the_quick_version_is_a_part_of_the_fields(exhibit: Exhibit) -> None:
    assert set(exhibit.over(quick=True)) == set(exhibit.over())
    for name, values in exhibit.over(quick=True).items():
        assert len(values) <= len(exhibit.over()[name])


def test_table1(runs: Runs, sft: Runs) -> None:
    seen = [
        *sft(3),
        *runs("DPR", [60.0, 61.0, 62.0]),
        *runs("SR", [60.5, 60.5, 61.9]),
        *runs("PPO", [60.4, 60.6, 61.9]),
        *runs("SPIN", [55.0, 56.1, 57.0]),
        *runs("GSIL", [65.0, 66.1, 67.0]),
        *runs("continued-SFT", [70.0, 71.1, 72.0]),
        *runs("greedy-SFT", [75.0, 76.1, 77.0]),
        *runs("cool-SFT", [73.0, 74.1, 75.0]),
        *runs("entropy-matched-SFT", [52.0, 53.1, 54.0]),
        *runs("extrapolated", [58.0, 59.1, 60.0]),
        *runs("equal-KL-extrapolation", [60.5, 60.4, 62.0]),
        *runs("best-of-8-reward", [80.0, 81.1, 82.0]),
    ]
    assert verdicts(EXHIBITS["table1"], seen) == {
        "DPR > SFT": "reproduced",
        "DPR > SR": "undecided",
        "DPR > SPIN": "reproduced",
        "DPR > GSIL": "not reproduced",
        "PPO = SR": "reproduced",
        "DPR > continued SFT": "not reproduced",
        "DPR > greedy SFT": "not reproduced",
        "DPR > cool SFT": "not reproduced",
        "DPR > SFT at its entropy": "reproduced",
        "DPR > weight extrapolation": "reproduced",
        "DPR > extrapolation at its KL": "undecided",
        "DPR > contrastive decoding": "not run",
        "DPR > best of n by reward": "not reproduced",
        "DPR > best of n by log pi_SFT": "not run",
        "DPR > random signs": "not run",
    }


def test_table2(runs: Runs, sft: Runs) -> None:
    seen = [
        *sft(2, response_tokens=40.0),
        *runs("DPR", [60.0, 60.1]),
        *runs("with-value", [47.0, 47.2]),
        *runs("without-baseline", [46.0, 46.1], response_tokens=[20.0, 20.1]),
    ]
    assert verdicts(EXHIBITS["table2"], seen) == {
        "DPR > w/V": "reproduced",
        "DPR > wo/Baseline": "reproduced",
        "SFT > wo/Baseline": "reproduced",
        "wo/Baseline is short": "reproduced",
        "w/V = wo/Baseline": "reproduced",
    }
    assert effects(EXHIBITS["table2"], seen)["wo/Baseline is short"] == pytest.approx(19.95)
    assert effects(EXHIBITS["table2"], seen)["SFT > wo/Baseline"] == pytest.approx(3.95)


def test_figure1(runs: Runs) -> None:
    names = (q.AUROC, q.TOP1, q.AUROC_LOG_SFT, q.TOP1_LOG_SFT)
    metrics = [
        dict(
            zip((f"diagnose/credit{m}" for m in ("_auroc", "_top1", "_log_sft_auroc", "_log_sft_top1")), v, strict=True)
        )
        for v in [(0.8, 0.4, 0.9, 0.2), (0.81, 0.41, 0.91, 0.2)]
    ]
    seen = runs("DPR", [60.0, 60.1], metrics=metrics)
    assert [quantity.read(seen[0]) for quantity in names] == [0.8, 0.4, 0.9, 0.2]
    assert verdicts(EXHIBITS["figure1"], seen) == {
        "r is low on a wrong token": "reproduced",
        "r is lowest on a wrong token": "not reproduced",
        "r > log pi_SFT, AUROC": "not reproduced",
        "r > log pi_SFT, top-1": "reproduced",
    }
    assert effects(EXHIBITS["figure1"], seen)["r > log pi_SFT, AUROC"] == pytest.approx(-0.1)


def test_figure2(runs: Runs) -> None:
    seen = [
        *runs("DPR", [60.0, 62.0], {GAMMA: 1.0}),
        *runs("DPR", [58.0, 60.1], {GAMMA: 0.95}),
        *runs("DPR", [61.0, 63.1], {GAMMA: 0.99}),
    ]
    # 60 - (58 + 61) / 2 and 62 - (60.1 + 63.1) / 2
    assert effects(EXHIBITS["figure2"], seen) == {"gamma 1 > the others": pytest.approx((0.5 + 0.4) / 2)}
    assert verdicts(EXHIBITS["figure2"], runs("DPR", [60.0], {GAMMA: 1.0})) == {"gamma 1 > the others": "not run"}


def test_figure3(runs: Runs) -> None:
    rates = {0.1: 55.0, 0.3: 99.0, 0.4: 60.0, 0.5: 62.0, 0.6: 61.0, 0.7: 99.0, 0.8: 60.0, 0.9: 70.0}
    seen = [each for at, rate in rates.items() for each in runs("DPR", [rate, rate], {REFERENCE: at})]
    assert effects(EXHIBITS["figure3"], seen) == {
        "reference near 0.5 > early": pytest.approx(61.0 - 55),
        "reference near 0.5 > late": pytest.approx(61.0 - 65),
    }
    assert list(verdicts(EXHIBITS["figure3"], seen).values()) == ["reproduced", "not reproduced"]


def test_figure3_passes_over_references_that_are_no_places(runs: Runs) -> None:
    seen = runs("DPR", [60.0, 60.0], {REFERENCE: "ema"}) + runs("DPR", [60.0, 60.0], {REFERENCE: [0.1, 0.9]})
    assert set(verdicts(EXHIBITS["figure3"], seen).values()) == {"not run"}


def profile(kl: list[float], reward: list[float], answers: list[int]) -> tuple[Position, ...]:
    return tuple(Position(t, n, k, r) for t, (n, k, r) in enumerate(zip(answers, kl, reward, strict=True)))


def test_figure4a_compares_the_halves_of_what_most_answers_reach(runs: Runs) -> None:
    # Position 4 is reached by fewer than half of the answers.
    whole = [10, 10, 5, 5, 4]
    one = profile([0.4, 0.2, 0.1, 0.0, 9.0], [0.3, 0.3, 0.2, 0.2, -9.0], whole)
    discounted = profile([0.5, 0.3, 0.1, 0.3, 9.0], [0.4, 0.4, 0.1, 0.1, -9.0], whole)
    seen = [
        *runs("DPR", [60.0, 60.0], {GAMMA: 1.0}, profile=one),
        *runs("DPR", [60.0, 60.0], {GAMMA: 0.95}, profile=discounted),
    ]
    assert effects(EXHIBITS["figure4a"], seen) == {
        "the KL falls, gamma 1": pytest.approx(0.3 - 0.05),
        "the reward falls less with gamma 1": pytest.approx(0.3 - 0.1),
    }
    assert set(verdicts(EXHIBITS["figure4a"], seen).values()) == {"reproduced"}


def test_positions_count_by_the_answers_that_reach_them(runs: Runs) -> None:
    (each,) = runs("DPR", [60.0], profile=profile([0.6, 0.0, 0.0, 0.0], [0.0] * 4, [20, 10, 10, 10]))
    assert q.fall("kl_to_sft", "").read(each) == pytest.approx((20 * 0.6 + 10 * 0.0) / 30)


def test_a_profile_too_short_for_halves_says_nothing(runs: Runs) -> None:
    for short in ((), profile([0.1], [0.1], [3])):
        assert q.fall("kl_to_sft", "").read(runs("DPR", [60.0], profile=short)[0]) is None


def test_figure4b(runs: Runs, sft: Runs) -> None:
    seen = [
        *(each for at in (0.3, 0.7, 1.0) for each in sft(2, {TEMPERATURE: at})),
        *runs("DPR", [60.0, 60.2], {TEMPERATURE: 0.3}),
        *runs("DPR", [61.0, 61.2], {TEMPERATURE: 0.7}),
        *runs("DPR", [40.0, 40.4], {TEMPERATURE: 1.0}),
    ]
    found = verdicts(EXHIBITS["figure4b"], seen)
    assert found == {"DPR > SFT at 0.3": "reproduced", "less at 1 than at 0.7": "reproduced"}


def test_a_sweep_claims_nothing(runs: Runs) -> None:
    assert exhibit_named("sweep").verdicts(runs("DPR", [60.0, 61.0])) == []
