"""The pages of results are what one command makes of the files that are kept, and say what the code runs and claims."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dpr_core.errors import UsageError
from dpr_core.experiments.exhibits import EXHIBITS
from dpr_core.experiments.measured import Answers, Arm
from dpr_core.experiments.observations import Observation, Position, as_json
from perf import results_page
from perf.hindsight import RULES, speaks
from perf.lab_results import Kept, Lab
from perf.results_page import Evidence

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LAB = (DOCS / "lab-results.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in LAB.partition("\n## Why")[0].split("\n### ")[1:]}


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return Evidence.read()


@pytest.mark.parametrize("name", ["results", "lab-results"])
def test_a_page_is_what_the_command_makes(name: str, evidence: Evidence) -> None:
    text = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert text == evidence.page(name), "python perf/evidence.py page"
    for image in re.findall(r"]\((images/\S+)\)", text):
        assert (DOCS / image).is_file(), "python perf/evidence.py page"


def test_the_front_page_is_too(evidence: Evidence) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == results_page.with_front(readme, evidence.page("front")), "python perf/evidence.py page"


def test_every_exhibit_has_its_section() -> None:
    assert list(SECTIONS) == [exhibit.title for exhibit in EXHIBITS.values()]


@pytest.mark.parametrize("name", EXHIBITS)
def test_what_an_exhibit_varies_is_what_was_run(name: str, evidence: Evidence) -> None:
    kept = evidence.lab.kept[name]
    for field, values in kept.exhibit.grid.items():
        assert {each.values[field] for each in kept.observations} == set(values), "python perf/evidence.py lab"
    assert {each.seed for each in kept.observations} == {1, 2, 3}, "the page says three seeds"
    assert not [each.claim for each in kept.verdicts if each.verdict == "not run"], (
        "a claim names a policy of no recipe"
    )


def test_withdrawn_claims_are_claims_of_the_lab(evidence: Evidence) -> None:
    asked = {claim.name for exhibit in EXHIBITS.values() for claim in exhibit.claims}
    assert evidence.withdrawn_claims
    assert set(evidence.withdrawn_claims) <= asked
    for claim in evidence.withdrawn_claims:
        escaped = claim.replace(">", "\\>")
        (row,) = [line for line in LAB.splitlines() if line.startswith(f"| {escaped} |")]
        assert "| withdrawn |" in row


def arm(name: str, seed: int, right: int, kl: float = 0.0, variant: str = "", **more: object) -> Arm:
    answers = Answers(
        temperature=0.7,
        prompts=50,
        questions="q",
        measures={"answer/kl_to_sft": kl, "answer/response_tokens": 20.0, "answers/entropy": 0.4},
        by_prompt={"right": "1" * right + "0" * (50 - right)},
    )
    return Arm(
        backbone="smollm2-135m",
        task="word-problems",
        arm=name,
        variant=variant,
        seed=seed,
        recipe="r",
        seconds={"sft": 100.0, "reinforce": 50.0, "reward": 10.0} if name == "DPR" else {"sft": 100.0},
        benchmarks={"heldout": answers},
        **more,  # type: ignore[arg-type]
    )


def measured(evidence: Evidence, dpr: list[int], sft: list[int], extrapolated: list[int]) -> Evidence:
    named = {"DPR": dpr, "SFT-same-entropy": sft, "extrapolated-same-kl": extrapolated, "SFT": sft}
    arms = [
        arm(name, seed, right, kl=0.0 if name.startswith("SFT") else 0.25)
        for name, each in named.items()
        for seed, right in enumerate(each, start=1)
    ]
    return replace(evidence, arms=arms, references=[])


def test_sentences_follow_the_numbers(evidence: Evidence) -> None:
    sft = [20, 22, 19, 21, 20]
    ahead = measured(evidence, [24, 26, 24, 25, 25], sft, [24, 25, 25, 25, 25])
    front, page = ahead.page("front"), ahead.page("results")
    assert "| **DPR minus SFT at DPR's entropy** | +8.8 \\[+7.4, +10.2\\], p " in front
    assert "| **DPR minus SFT extrapolated to DPR's KL** | +0.0 \\[-1.8, +1.8\\], p 1.000 | not yet run |" in front
    assert "| DPR minus SFT | +8.8 \\[+7.4, +10.2\\] | \u2013 |" in front
    assert "| seconds of one core: SFT, then reward and DPR | 100, 60 | \u2013 |" in front
    assert "No primary contrast" not in front
    assert "primary. smollm2-135m: DPR is ahead by 8.8 points (+7.4 to +10.2)." in page
    assert "primary. smollm2-135m: no clear difference (-1.8 to +1.8)." in page
    assert (
        "DPR beside SFT, both sampled at 0.7; exploratory. smollm2-135m: higher (+8.8 points, +7.4 to +10.2, 5" in page
    )
    assert "smollm2-135m: SFT 100, reward and DPR 60 on top. Another temperature" in page
    assert "| smollm2-135m | DPR minus SFT decoded at the temperature at which" in page
    assert "| DPR | 49.6 \\[47.5, 51.7\\] | +8.8 \\[+7.4, +10.2\\] |" in page

    behind = measured(evidence, sft, [24, 26, 24, 25, 25], sft).page("results")
    assert "primary. smollm2-135m: DPR is behind by 8.8 points (-10.2 to -7.4)." in behind

    unfinished = measured(evidence, [24, 26], [20, 22], [24, 25]).page("results")
    assert "no verdict before every seed is there: 2 of 5 seeds." in unfinished
    everywhere = replace(ahead, arms=[*ahead.arms, *(on_gemma(each) for each in ahead.arms if each.seed <= 3)])
    assert "**DPR is ahead in 2 of 4 primary contrasts: smollm2-135m (entropy), gemma-3-270m (entropy).**" in (
        everywhere.page("front")
    )
    assert "Not yet run." in replace(evidence, arms=[], references=[]).page("results")


def on_gemma(arm: Arm) -> Arm:
    return arm.model_copy(update={"backbone": "gemma-3-270m"})


def test_what_was_never_run_is_listed_and_the_commands_make_what_there_is(evidence: Evidence) -> None:
    made = [arm("SFT", 1, 20), arm("SFT", 2, 20), arm("DPR", 2, 20, variant="low", changes={"reinforce.gamma": 0.5})]
    found = replace(evidence, arms=made)
    words, *others = found.missing()
    assert not {"SFT", "DPR"} & set(words.removeprefix("word-problems: ").split(", "))
    assert "random-sign" in words
    assert others == ["e2e", "gsm8k"]
    assert found.commands() == [
        "python perf/evidence.py run r --backbone smollm2-135m --task word-problems --seeds 1 2",
        "python perf/evidence.py run r --backbone smollm2-135m --task word-problems --seeds 2 --variant low \\\n"
        "  --set 'reinforce.gamma=0.5'",
    ]
    trials = {"evaluation.controls.x.match_trials": 2}
    of_family = arm("SFT", 1, 20, changes={"evaluation.controls.x": None}).model_copy(update={"recipe": "r-family"})
    sets = [replace(evidence, arms=[each]).commands()[0] for each in (arm("SFT", 1, 20, changes=trials), of_family)]
    assert sets[0].endswith("--set 'evaluation.controls.x.match_trials=2'")
    assert sets[1].endswith("--seeds 1")


def test_a_backbone_that_no_contrast_asks_for_comes_last(evidence: Evidence) -> None:
    larger = arm("SFT", 1, 20).model_copy(update={"backbone": "a-larger-one"})
    found = replace(evidence, arms=[larger, arm("SFT", 1, 20), on_gemma(arm("SFT", 1, 20))])
    assert [backbone for backbone, _ in found.runs()] == ["smollm2-135m", "gemma-3-270m", "a-larger-one"]
    assert "### a-larger-one on word-problems" in found.page("results")


def test_arms_that_were_not_made_equal_decide_nothing(evidence: Evidence) -> None:
    found = measured(evidence, [24, 26, 24, 25, 25], [20] * 5, [20, 22, 19, 21, 20])
    further = [replace_measure(each, "answer/kl_to_sft", 0.5) if each.arm == "DPR" else each for each in found.arms]
    page = replace(found, arms=further).page("results")
    assert "DPR is ahead by 8.8 points, but the arms were not made equal (kl_to_sft, seed 1\u20135)" in page


def replace_measure(arm: Arm, name: str, value: float) -> Arm:
    (answers,) = arm.benchmarks.values()
    changed = answers.model_copy(update={"measures": answers.measures | {name: value}})
    return arm.model_copy(update={"benchmarks": {"heldout": changed}})


def test_holm_is_told_where_it_decides(evidence: Evidence) -> None:
    found = measured(evidence, [22, 25, 21, 24, 23], [21, 23, 21, 23, 22], [23, 24, 21, 24, 24])
    outcome = found.outcomes[0]
    assert outcome.p_value is not None
    assert outcome.p_value < 0.05 < 2 * outcome.p_value
    assert found.verdict(outcome) == "not decided: within chance once Holm counts both"


def test_differences_are_from_the_sft_run_that_an_arm_was_made_from(evidence: Evidence) -> None:
    arms = [
        arm("SFT", 1, 20, digests={"sft": "a"}),
        arm("SFT", 1, 30, variant="bfloat16", digests={"sft": "b"}),
        arm("DPR", 1, 32, variant="bfloat16", digests={"sft": "b"}),
        arm("DPR", 1, 21, variant="gamma-0", digests={"sft": "a"}),
    ]
    page = replace(evidence, arms=arms).page("results").partition("## Precision")[2]
    assert "| DPR bfloat16 | 64.0 | +4.0 \\[-1.6, +9.6\\] |" in page
    assert "| DPR gamma-0 | 42.0 | +2.0 \\[-2.0, +6.0\\] |" in page


def test_the_same_answers_of_two_runs_stand_once_and_seed_0_says_that_it_is_that(evidence: Evidence) -> None:
    both = [arm("SFT", 0, 20, variant=variant, digests={"answers heldout": "a"}) for variant in ("", "gamma-0")]
    assert replace(evidence, arms=both).names("smollm2-135m", "word-problems") == ["SFT"]
    assert replace(evidence, arms=both).hours() == pytest.approx(200 / 3600)
    assert "| 0 |" in replace(evidence, arms=both).table("smollm2-135m", "word-problems")


def test_a_policy_that_was_never_kept_is_in_no_table(evidence: Evidence) -> None:
    settings = {"answer": {"policy": {"type": "kept", "kl": 0.5}}}
    run = {"sft": "s", "reinforce": "r"}
    kept = [arm("kept", seed, 30, 0.5, settings=settings, digests=run) for seed in (1, 2)]
    kept[1] = replace_measure(kept[1], "answer/kept_reached", 0.0)
    results = {"rollout/kl": 0.25, "rollout/entropy": 0.5, "guard/kept_iteration": 2.0}
    training: dict[str, dict[str, list[float | None]]] = {
        "rollout": {"step": [0.0, 1.0, 2.0], "kl": [0.0, 0.25, 0.9]},
        "train": {"step": [1.0, 2.0]},
    }
    dpr = arm("DPR", 1, 25, 0.3, digests=run, results=results, training=training)
    found = replace(evidence, arms=[*kept, dpr, arm("SFT", 1, 20, digests={"sft": "s"})])
    table = found.table("smollm2-135m", "word-problems")
    assert "| kept | 60.0 | +20.0 \\[+8.5, +31.5\\] | 0.70 | 0.400 | 0.500 | 20.0 | \u2013 | 0 | 1 |" in table
    assert "to be kept: kept of smollm2-135m, seed 2." in found.page("results")
    assert list(found.frontier("smollm2-135m", "word-problems")["right"]) == ["SFT", "DPR", "along DPR"]
    assert found.kept("smollm2-135m", "word-problems") == [1]
    whole = replace(found, arms=[dpr.model_copy(update={"results": {}})])
    assert whole.kept("smollm2-135m", "word-problems") == [2]


def test_a_benchmark_is_shown_by_its_own_measure(evidence: Evidence) -> None:
    sft = arm("SFT", 1, 20)
    answers = sft.benchmarks["heldout"].model_copy(
        update={"primary": "equation_right", "measures": {"gold/equation_right": 0.25, "gold/right": 0.02}}
    )
    found = replace(evidence, arms=[sft.model_copy(update={"benchmarks": {**sft.benchmarks, "gsm8k": answers}})])
    table = found.table("smollm2-135m", "word-problems")
    assert "gsm8k: equation\\_right" in table
    assert "| 25.0 |" in table


def test_the_iteration_at_which_each_guard_speaks(evidence: Evidence) -> None:
    rollout = {
        "step": [0.0, 1.0, 2.0, 3.0],
        "kl": [0.0, 0.2, 0.6, 2.0],
        "entropy": [1.0, 0.9, 0.8, 0.3],
        "length": [20.0, 22.0, 24.0, 26.0],
        "log_sft": [-0.5, -0.5, -0.9, -1.0],
        "log_sft_error": [0.01] * 4,
        "contrast": [0.1, 0.2, 0.3, 0.3],
        "contrast_error": [0.01] * 4,
    }
    assert {rule: speaks(rule, rollout) for rule in RULES} == {
        "KL above 0.3": 3,
        "witness": 3,
        "entropy halved": 4,
        "length off by a quarter": 4,
    }
    lost = {**rollout, "kl": [0.0, None, None, None], "contrast": [0.1, None, None, None]}
    assert speaks("KL above 0.3", lost) == 2, "a KL that is no number is above any limit"
    assert speaks("entropy halved", {**lost, "entropy": [1.0, None, None, None]}) is None
    wrong = arm("DPR", 1, 12, 2.0, "wrong", training={"rollout": rollout})
    kept = [
        arm(f"kept-{kl}", 1, right, kl, "wrong", settings={"answer": {"policy": {"type": "kept", "kl": kl}}})
        for kl, right in ((0.1, 22), (0.5, 15))
    ]
    found = replace(evidence, arms=[wrong, *kept, arm("SFT", 1, 20, 0.0, "wrong")])
    assert "| smollm2-135m | wrong | 1 | 3 | 3 | 3 | 4 | 4 |" in found.guards_table()


def test_the_reference_is_asked_for_only_where_rewards_differ(evidence: Evidence) -> None:
    def of(backbone: str, least: float) -> dict[str, object]:
        matrix = [[1, 0.8, 0.7], [0.8, 1, least], [0.7, least, 1]]
        kinds = {kind: {"token_correlation": matrix} for kind in ("demonstrations", "answers")}
        return {"backbone": backbone, "task": "t", "seed": 0, "references": [0.0, 0.25, 0.5], **kinds}

    found = replace(evidence, references=[of("one", 0.97), of("two", 0.9)])
    assert found.asks_figure3() == ["two"]
    assert "| one | t | 0 | 0.970 | 0.970 | 0.700 | 0.700 |" in found.correlations_table()


def test_an_experiments_file_shows_what_its_stage_shows(tmp_path: Path) -> None:
    accuracy = {"SFT": 0.5, "DPR": 0.75, "SR": 0.7}
    place = (Position(0, 3, 1 / 3, 0.5), Position(1, 2, 0.25, 0.125))
    observed = [
        Observation(
            point=f"seed={seed}",
            values={},
            seed=seed,
            sft=str(seed),
            policy=policy,
            benchmark="lab",
            prompts=100,
            response_tokens=30.0,
            cut_share=0.0,
            accuracy=right + seed / 100,
            win_rate=50 + 50 * (right - 0.5) + seed,
            metrics={"guard/stopped_at_iteration": 1 / 3},
            profile=place,
        )
        for seed in (1, 2, 3)
        for policy, right in accuracy.items()
    ]
    (tmp_path / "observations.json").write_text(as_json(observed), encoding="utf-8")
    experiment: Any = SimpleNamespace(config={"exhibit": "table1"}, path=tmp_path)
    kept = Kept.read(Kept.of(experiment, "dpr reproduce table1 --again").write(tmp_path))
    assert kept.observations[0].profile == (Position(0, 3, 0.333333, 0.5), place[1]), "six digits"
    assert [replace(each, metrics={}, profile=()) for each in kept.observations] == [
        replace(each, metrics={}, profile=()) for each in observed
    ]
    lab = Lab({"table1": kept}, [])
    assert lab.commands() == [("dpr reproduce table1 --again", "Table 1")]
    assert lab.policies("table1").splitlines()[3] == (
        "| DPR | 64.5 \\[62.0, 67.0\\] | 77.0 \\[74.5, 79.5\\] | 30.0 | 0.0 | 3 | 3 |"
    )
    claims = lab.claims("table1", ["DPR > SR"]).splitlines()
    assert any(line.startswith("| DPR \\> SR |") and "| withdrawn | +2.5 |" in line for line in claims)
    assert any(line.startswith("| DPR \\> SPIN |") and "| not run |" in line for line in claims)
    with pytest.raises(UsageError, match="is of no table or figure"):
        Kept.of(SimpleNamespace(id="0123456789", config={"exhibit": "sweep"}), "")  # type: ignore[arg-type]


def test_one_seed_is_compared_over_its_questions(evidence: Evidence) -> None:
    run = {"sft": "s"}
    found = replace(evidence, arms=[arm("SFT", 1, 20, digests=run), arm("continued-SFT", 1, 30, digests=run)])
    # Ten of fifty questions: 20 points, and 1.96 standard errors of a share of .2 (2.01 of Student's t with 49).
    half = 2.0096 * 100 * (0.2 * 0.8 / 49) ** 0.5
    said = found.compared("smollm2-135m", "word-problems", "SFT", "continued-SFT")
    interval = f"{-20 - half:+.1f} to {-20 + half:+.1f}"
    assert said == f"lower (-20.0 points, {interval}, over the questions of seed 1)"
    assert found.above_sft("smollm2-135m", "word-problems") == [
        f"continued-SFT (+20.0 [{20 - half:+.1f}, {20 + half:+.1f}])"
    ]


def test_what_is_above_sft_is_told_once_under_its_name_of_most_seeds(evidence: Evidence) -> None:
    def of(name: str, seed: int, run: str, variant: str = "") -> Arm:
        return arm(name, seed, 28 + seed, variant=variant, digests={"sft": str(seed), "reinforce": run})

    arms = [arm("SFT", seed, 20, digests={"sft": str(seed)}) for seed in (1, 2, 3)]
    arms += [of("DPR", seed, f"late, seed {seed}", "reference-0.9") for seed in (1, 2, 3)]
    arms += [of("reference-0.9", 1, "late, seed 1"), of("reference-0.1", 1, "early, seed 1")]
    found = replace(evidence, arms=arms)
    (first, second) = found.above_sft("smollm2-135m", "word-problems")
    assert first.startswith("DPR reference-0.9 (+20.0 ")
    assert second.startswith("reference-0.1 (+18.0 ")


def test_likelihood_of_demonstrations_is_on_the_frontier_and_other_references_have_their_table(
    evidence: Evidence,
) -> None:
    nats = Answers(
        temperature=1.0, prompts=50, questions="q", measures={"gold/nats_per_token": 0.4321}, primary="nats_per_token"
    )
    arms = [arm("SFT", 1, 20, digests={"sft": "s"}), arm("reference-0.5", 1, 21, 0.2, digests={"sft": "s"})]
    arms.append(arm("reference-0.9", 1, 23, 0.3, digests={"sft": "s"}))
    arms = [each.model_copy(update={"benchmarks": {**each.benchmarks, "likelihood": nats}}) for each in arms]
    found = replace(evidence, arms=arms)
    assert found.frontier("smollm2-135m", "word-problems")["nats_per_token"]["SFT"] == [(0.0, (0.4321,) * 3)]
    page = found.page("results")
    section = page.partition("## The reference")[2].partition("\n## ")[0]
    assert "| reference-0.9 | 46.0 | +6.0 \\[-0.8, +12.8\\] | \u2013 | 0.432 |" in section
    assert "reference-0.9" not in page.partition("\n## Arms")[2].partition("\n## ")[0]
