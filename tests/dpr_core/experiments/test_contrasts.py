from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from dpr_core.errors import UsageError
from dpr_core.experiments import contrasts
from dpr_core.experiments.contrasts import Contrasts
from dpr_core.experiments.measured import Answers, Arm

FILE = Path(__file__).parents[3] / "docs" / "results" / "contrasts.yaml"


@pytest.fixture
def written() -> Contrasts:
    return contrasts.load(FILE)


def arm(name: str, seed: int, right: int, *, temperature: float = 0.7, questions: str = "q", **settings: Any) -> Arm:
    answers = Answers(
        temperature=temperature,
        prompts=20,
        questions=questions,
        measures={"answers/entropy": 0.3},
        by_prompt={"right": "1" * right + "0" * (20 - right)},
    )
    return Arm(
        backbone="smollm2-135m",
        task="word-problems",
        arm=name,
        seed=seed,
        recipe="smollm2-135m",
        settings={"reinforce": settings} if settings else {},
        benchmarks={"heldout": answers},
    )


def runs(dpr: list[int], sft: list[int], extrapolated: list[int]) -> list[Arm]:
    named = {"DPR": dpr, "SFT-same-entropy": sft, "extrapolated-same-kl": extrapolated}
    return [arm(name, seed, right) for name, each in named.items() for seed, right in enumerate(each, start=1)]


def test_the_committed_file_has_two_contrasts_and_seeds_that_chose_nothing(written: Contrasts) -> None:
    assert [each.name for each in written.primary] == ["entropy", "kl"]
    assert {name: len(each.seeds) for name, each in written.backbones.items()} == {"smollm2-135m": 5, "gemma-3-270m": 3}


def test_a_contrast_is_a_paired_t_test_over_seeds_and_holm_adjusts_it(written: Contrasts) -> None:
    dpr, sft, other = [10, 12, 11, 13, 12], [8, 9, 9, 11, 8], [11, 11, 12, 12, 12]
    entropy, kl, *gemma = contrasts.outcomes(written, runs(dpr, sft, other))
    by_scipy = [stats.ttest_rel(dpr, each).pvalue for each in (sft, other)]
    assert entropy.effect == pytest.approx(5 * sum(a - b for a, b in zip(dpr, sft, strict=True)) / 5)
    assert [entropy.p_value, kl.p_value] == pytest.approx(by_scipy)
    assert entropy.adjusted == pytest.approx(2 * by_scipy[0])
    assert kl.adjusted == pytest.approx(by_scipy[1])
    interval = stats.ttest_rel(dpr, sft).confidence_interval()
    assert entropy.interval == pytest.approx((5 * interval.low, 5 * interval.high))
    assert entropy.matches[1] == (0.3, 0.3)
    assert [each.verdict(0.05) for each in (entropy, kl)] == ["ahead", "no difference seen"]
    assert {each.verdict(0.05) for each in gemma} == {"not yet run"}


def test_nothing_is_decided_before_every_seed_is_there(written: Contrasts) -> None:
    entropy, kl, *_ = contrasts.outcomes(written, runs([10, 12, 11], [8, 9, 9], [11, 11, 12]))
    assert entropy.missing == (4, 5)
    assert {entropy.verdict(0.05), kl.verdict(0.05)} == {"unfinished"}


def test_the_seed_that_chose_the_setting_does_not_count(written: Contrasts) -> None:
    arms = runs([10, 12], [8, 9], [9, 9])
    extra = [arm("DPR", 0, 20), arm("SFT-same-entropy", 0, 0)]
    assert contrasts.outcomes(written, arms + extra)[0].differences == pytest.approx({1: 10.0, 2: 15.0})


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (arm("SFT-same-entropy", 1, 8, questions="others"), "of other questions"),
        (arm("SFT-same-entropy", 1, 8).model_copy(update={"digests": {"sft": "0"}}), "another SFT run"),
    ],
)
def test_arms_that_cannot_be_paired_are_refused(written: Contrasts, other: Arm, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        contrasts.outcomes(written, [arm("DPR", 1, 9), other])


def test_dpr_at_another_temperature_or_setting_is_refused(written: Contrasts) -> None:
    with pytest.raises(UsageError, match="was drawn at 1, not at 0.7"):
        contrasts.outcomes(written, [arm("DPR", 1, 9, temperature=1.0), arm("SFT-same-entropy", 1, 8)])
    chosen = written.setting.model_copy(update={"reinforce": {"learning_rate": 2e-6, "algorithm.kl_weight": 0.1}})
    given = {"learning_rate": 2e-6, "algorithm": {"type": "reinforce_plus_plus", "kl_weight": 0.1}}
    contrasts.check_setting(chosen, arm("DPR", 1, 9, **given))
    with pytest.raises(UsageError, match="learning_rate is 1e-06, but 2e-06 was chosen"):
        contrasts.check_setting(chosen, arm("DPR", 1, 9, **given | {"learning_rate": 1e-6}))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seeds: [1, 2, 3, 4, 5]", "seeds: [0, 1]", "seed 0 chose the setting"),
        ("seeds: [1, 2, 3, 4, 5]", "seeds: [1, 1]", "named twice"),
        ("second: SFT-same-entropy", "second: DPR", "compared with itself"),
        ("name: kl", "name: entropy", "two contrasts are called entropy"),
        ("level: 0.05", "levle: 0.05", "level"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    (file := tmp_path / "contrasts.yaml").write_text(FILE.read_text().replace(old, new))
    with pytest.raises(UsageError, match=words):
        contrasts.load(file)
