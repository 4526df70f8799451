"""`dpr benchmark` on small files of the official layouts."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dpr_core.config.official import MTBenchConfig
from dpr_core.evaluation import judge as judges
from dpr_core.evaluation.official.layouts import LAYOUTS
from dpr_core.evaluation.questions import Question
from tests.dpr_core.evaluation.protocols.made import arena
from tests.loopback import Loopback, completion

pytestmark = pytest.mark.integration

Dpr = Any

QUESTIONS = [{"question_id": 81, "category": "writing", "turns": ["Write.", "Rewrite."]}]


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rating(turn: int, score: int) -> dict[str, Any]:
    return {"question_id": 81, "model": "<b>m</b>\x1b[31m", "judge": ["gpt-4", "s"], "turn": turn, "score": score}


def answers(path: Path, model: str, turns: tuple[str, ...]) -> Path:
    path.write_text(LAYOUTS["mt-bench"].write(model, [(Question("81", ("Write.", "Rewrite.")), turns)]))
    return path


def test_score_prints_a_document_and_a_view(dpr: Dpr, tmp_path: Path) -> None:
    file = lines(tmp_path / "judgments.jsonl", [rating(1, 8), rating(2, -1)])
    questions = lines(tmp_path / "question.jsonl", QUESTIONS)
    arguments = ["benchmark", "score", "--format", "mt-bench", str(file), "--questions", str(questions)]
    dpr(*arguments).assert_refused(
        1, "too many verdicts cannot be read: 1 verdicts of", "50.0%", "--max-unreadable-share="
    )
    arguments += ["--max-unreadable-share", "0.5"]
    (found,) = dpr(*arguments, "--json").json["models"].values()
    assert found["official"] == {"turn1": 8.0, "turn2": None, "average": 8.0, "categories": {"writing": 8.0}}
    assert (found["n"], found["unscored"], found["unscored_share"]) == (2, 1, 0.5)
    assert found["warnings"] == ["1 ratings could not be read (81 turn 2)"]
    shown = dpr(*arguments)
    assert shown.status == 0
    assert "ratings could not be read" in shown.stdout
    assert "\x1b[31m" not in shown.stdout


def test_style_control_is_arena_hards_alone(dpr: Dpr, tmp_path: Path) -> None:
    file = lines(tmp_path / "judgments.jsonl", [rating(1, 8)])
    found = dpr("benchmark", "score", "--format", "mt-bench", str(file), "--style-control")
    assert (found.status, "--style-control is Arena-Hard's" in found.stderr) == (2, True)


def test_two_answer_files_are_judged_without_a_pipeline(dpr: Dpr, tmp_path: Path) -> None:
    questions = lines(tmp_path / "question.jsonl", QUESTIONS)
    mine = answers(tmp_path / "mine.jsonl", "mine", ("a longer text", "and more"))
    theirs = answers(tmp_path / "theirs.jsonl", "theirs", ("short", "text"))
    games = tmp_path / "games.jsonl"
    common = ["benchmark", "judge", "--format", "mt-bench", "--questions", str(questions), "--set", "by.type=scripted"]
    result = dpr(*common, "--answers", str(mine), "--baseline", str(theirs), "--output", str(games), "--json").json
    assert (result["candidate"], result["baseline"], result["win_rate"], result["prompts"]) == (
        "mine",
        "theirs",
        100.0,
        1,
    )
    again = dpr("benchmark", "score", "--format", "lima", str(games), "--json").json["models"]["candidate"]
    assert again["paper"]["win_rate"] == 100.0
    same = [*common, "--answers", str(mine), "--baseline", str(mine)]
    assert "50.0 %" in dpr(*same).stdout
    checked = dpr(*(each.replace("scripted", "verifiable") for each in same))
    assert (checked.status, "question 81 has no reference" in checked.stderr) == (2, True)


def test_the_benchmark_alone_is_enough_where_the_hub_has_its_questions(
    dpr: Dpr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = answers(tmp_path / "mine.jsonl", "mine", ("longer", "text"))
    theirs = answers(tmp_path / "theirs.jsonl", "theirs", ("short", "text"))
    asked = []

    def fetch(repository: str, file: str, **more: Any) -> str:
        asked.append((repository, file, more["revision"]))
        return str(lines(tmp_path / "question.jsonl", QUESTIONS))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    common = ["benchmark", "judge", "--set", "by.type=scripted", "--answers", str(mine), "--baseline", str(theirs)]
    result = dpr(*common, "--benchmark", "mt_bench", "--json").json
    assert (result["win_rate"], result["characters"], result["baseline_characters"]) == (100.0, 10, 9)
    assert set(asked) == {("HuggingFaceH4/mt_bench_prompts", "raw/question.jsonl", MTBenchConfig().revision)}
    unknown = dpr(*common, "--benchmark", "mt")
    assert (unknown.status, "'mt' is none of mt-bench" in unknown.stderr) == (2, True)


def test_a_dry_run_says_what_it_would_cost_and_asks_nobody(dpr: Dpr, tmp_path: Path) -> None:
    questions = lines(tmp_path / "question.jsonl", QUESTIONS)
    mine = answers(tmp_path / "mine.jsonl", "mine", ("a", "b"))
    common = ["benchmark", "judge", "--format", "mt-bench", "--questions", str(questions), "--dry-run", "--json"]
    cost = dpr(*common, "--answers", str(mine), "--baseline", str(mine)).json
    # Both orders of the pair, and of the two canaries.
    assert cost["requests"] == 2 + 4
    assert cost["tokens_written_at_most"] == 6 * 512
    assert 0 < cost["dollars_at_most"] < 0.05
    batched = dpr(*common, "--answers", str(mine), "--baseline", str(mine), "--set", "by.type=openai-batch").json
    assert batched["requests"] == cost["requests"]
    assert batched["dollars_at_most"] == pytest.approx(cost["dollars_at_most"] / 2, abs=0.01)
    without = [*common, "--set", "execution.canaries=0"]
    assert dpr(*without, "--answers", str(mine), "--baseline", str(mine)).json["requests"] == 2


def test_mt_bench_is_judged_in_fastchats_words_and_scored_from_its_file(
    dpr: Dpr, tmp_path: Path, loopback: Loopback
) -> None:
    shown = {"pair-v2": "{answer_a} or {answer_b}?", "pair-v2-multi-turn": "{answer_a_2} or {answer_b_2}?"}
    shown |= {name.replace("v2", "math-v1"): template for name, template in shown.items()}
    prompts = lines(
        tmp_path / "judge_prompts.jsonl",
        [{"name": name, "system_prompt": "", "prompt_template": template} for name, template in shown.items()],
    )
    references = lines(
        tmp_path / "gpt-4.jsonl", [{"question_id": 81, "model_id": "r", "choices": [{"turns": ["right", "righter"]}]}]
    )
    mine = answers(tmp_path / "mine.jsonl", "mine", ("good one", "good two"))
    theirs = answers(tmp_path / "theirs.jsonl", "theirs", ("bad one", "bad two"))

    def better(call: Any) -> Any:
        asked = call.json["messages"][-1]["content"]
        return completion("[[C]]" if "two" in asked else "So [[A]]" if asked.startswith("good") else "So [[B]]")

    loopback.answer = better
    common = ["benchmark", "judge", "--format", "mt-bench", "--questions", str(lines(tmp_path / "q.jsonl", QUESTIONS))]
    by = [f"prompts={prompts}", f"by.base_url={loopback.url}", "execution.canaries=0", "execution.check_endpoint=false"]
    common += [part for each in by for part in ("--set", each)]
    pair = [*common, "--answers", str(mine), "--baseline", str(theirs), "--references", str(references)]
    assert dpr(*pair, "--dry-run", "--json").json["requests"] == 4
    result = dpr(*pair, "--official", str(tmp_path / "official"), "--json").json
    assert (result["prompts"], result["wins"], result["ties"], result["win_rate"]) == (1, 2, 2, 75.0)
    assert result["references"]["wrong"] == []
    assert sorted(request["messages"][-1]["content"] for request in loopback.requests) == [
        "bad one or good one?", "bad two or good two?", "good one or bad one?", "good two or bad two?",
    ]  # fmt: skip
    (file,) = (tmp_path / "official").iterdir()
    assert file.name == "gpt-4o-2024-08-06_pair.jsonl"
    scored = dpr("benchmark", "score", "--format", "mt-bench", str(file), "--json").json["models"]["mine"]
    assert scored["official"] == {"win_rate": 0.5, "loss_rate": 0.0, "win_rate_adjusted": 0.75}
    assert scored["official"] == result["official"]["official"]
    kept = file.read_text()
    dpr(*pair, "--official", str(file.parent)).assert_refused(2, "gpt-4o-2024-08-06_pair.jsonl is there already")
    assert file.read_text() == kept, "it may hold the judgments of other models"
    # Both sides may be called the same, as `dpr benchmark export` calls every model.
    namesake = answers(tmp_path / "namesake.jsonl", "mine", ("bad one", "bad two"))
    pair[pair.index(str(theirs))] = str(namesake)
    assert dpr(*pair, "--json").json["official"]["official"] == result["official"]["official"]
    arena = [each.replace("mt-bench", "arena-hard") for each in pair]
    dpr(*arena).assert_refused(2, "--references are MT-Bench's")


def test_an_empty_answer_is_counted_and_judged_as_it_is(dpr: Dpr, tmp_path: Path) -> None:
    questions = lines(tmp_path / "question.jsonl", QUESTIONS)
    mine = answers(tmp_path / "mine.jsonl", "mine", ("something", ""))
    theirs = answers(tmp_path / "theirs.jsonl", "theirs", ("a", "b"))
    common = ["benchmark", "judge", "--format", "mt-bench", "--questions", str(questions), "--set", "by.type=scripted"]
    result = dpr(*common, "--answers", str(mine), "--baseline", str(theirs), "--json").json
    assert (result["empty_answers"], result["prompts"], result["win_rate"]) == (1, 1, 100.0)
    assert "1 answers are empty" in dpr(*common, "--answers", str(mine), "--baseline", str(theirs)).stdout


def test_verdicts_that_cannot_be_read_are_no_result(dpr: Dpr, tmp_path: Path) -> None:
    questions = lines(tmp_path / "question.jsonl", QUESTIONS)
    mine, output = answers(tmp_path / "mine.jsonl", "mine", ("a", "b")), tmp_path / "out.jsonl"
    common = ["--set", "by.type=scripted", "--set", "by.rule=unreadable", "--questions", str(questions), "--json"]
    pair = ["benchmark", "judge", "--format", "mt-bench", *common, "--answers", str(mine), "--baseline", str(mine)]
    dpr(*pair, "--output", str(output)).assert_refused(1, "2 of 2 verdicts could not be read", "--output")
    assert len(output.read_text().splitlines()) == 2
    assert dpr(*pair, "--set", "execution.max_unreadable_share=1").json["win_rate"] is None
    dpr("benchmark", "rate", *common, "--answers", str(mine)).assert_refused(1, "2 of 2 ratings could not be read")


def test_a_judge_that_costs_money_is_tried_out_first(dpr: Dpr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "costs_money", lambda config: True)
    questions = lines(tmp_path / "question.jsonl", QUESTIONS)
    mine = answers(tmp_path / "mine.jsonl", "mine", ("a", "b"))
    result = dpr(
        "benchmark", "judge", "--format", "mt-bench", "--questions", str(questions), "--set", "by.type=scripted",
        "--set", "by.rule=first", "--answers", str(mine), "--baseline", str(mine), "--json",
    ).json  # fmt: skip
    assert (result["judge/canary_self"], result["judge/canary_constant"]) == (1.0, 0.5)
    assert [line.split(":")[0] for line in result["warnings"]] == ["The judge favours the first place"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"answers": [{"question_id": 81, "turns": ["x"]}]}, "not MT-Bench answers"),
        (
            {"questions": [{"question_id": 99, "turns": ["Write.", "Rewrite."]}]},
            "that are not in the questions file",
        ),
        ({"questions": [{"question_id": 81, "turns": ["Write."]}]}, "answered by both models in all its turns"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(
    dpr: Dpr, tmp_path: Path, change: dict[str, list[dict[str, Any]]], expected: str
) -> None:
    questions = lines(tmp_path / "question.jsonl", change.get("questions", QUESTIONS))
    mine = answers(tmp_path / "mine.jsonl", "mine", ("a", "b"))
    other = lines(tmp_path / "other.jsonl", change["answers"]) if "answers" in change else mine
    result = dpr(
        "benchmark", "judge", "--format", "mt-bench", "--questions", str(questions), "--set", "by.type=scripted",
        "--answers", str(other), "--baseline", str(mine), "--json",
    )  # fmt: skip
    result.assert_refused(2, expected)


def test_two_judges_are_compared_on_the_same_answers(dpr: Dpr, tmp_path: Path) -> None:
    questions = lines(tmp_path / "question.jsonl", QUESTIONS)
    mine = answers(tmp_path / "mine.jsonl", "mine", ("a longer text", "and more"))
    theirs = answers(tmp_path / "theirs.jsonl", "theirs", ("short", "text"))
    for rule in ("longer", "shorter", "first"):
        dpr(
            "benchmark", "judge", "--format", "mt-bench", "--questions", str(questions), "--set", "by.type=scripted",
            "--set", f"by.rule={rule}", "--answers", str(mine), "--baseline", str(theirs), "--json",
            "--output", str(tmp_path / f"{rule}.jsonl"),
        )  # fmt: skip
    longer, shorter, first = (str(tmp_path / f"{rule}.jsonl") for rule in ("longer", "shorter", "first"))
    found = dpr("benchmark", "parity", longer, shorter, "--json").json
    assert (found["agreement"], found["kappa"], found["shift"], found["games"]) == (0.0, 0.0, -100.0, 2)
    shown = dpr("benchmark", "parity", longer, first).stdout
    assert "shift          -50.0 points" in shown
    dpr("benchmark", "parity", longer, str(questions)).assert_refused(2, "question.jsonl", "'candidate_first'")
    dpr("benchmark", "parity", longer, "0" * 32).assert_refused(2, "0000")
    dpr("benchmark", "parity", longer, "gone.jsonl").assert_refused(2, "there is no file gone.jsonl")
    odd = lines(tmp_path / "odd.jsonl", [{"question_id": "81", "candidate_first": [], "verdict": "tie"}])
    dpr("benchmark", "parity", longer, str(odd)).assert_refused(2, "`candidate_first` is true or false")


def test_judge_artifacts_are_compared_if_they_are_of_the_same_answers(dpr: Dpr, made: Any) -> None:
    one, other = made.id("judge DPR on lab"), made.id("judge extrapolated on lab")
    found = dpr("benchmark", "parity", one, one[:8], "--json", home=made.home).json
    assert (found["agreement"], found["prompts"], found["shift"]) == (1.0, 12, 0.0)
    dpr("benchmark", "parity", one, other, home=made.home).assert_refused(2, "were not given the same answers")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"instruction": "a", "preference": 1, "generator_2": "m"}, "AlpacaEval's annotations.*--format alpaca-eval"),
        ({"question_id": 1, "model": "m", "games": []}, "Arena-Hard judgments.*--format arena-hard"),
        ({"question_id": "1", "candidate_first": True, "verdict": "tie"}, "games of `dpr benchmark judge`"),
        ({"question_id": 1, "model_id": "m", "choices": []}, "answers that nobody has judged.*`dpr benchmark judge`"),
    ],
)
def test_a_file_of_another_layout_is_named(dpr: Dpr, tmp_path: Path, row: dict[str, Any], words: str) -> None:
    file = lines(tmp_path / "rows.jsonl", [row])
    line = dpr("benchmark", "score", "--format", "mt-bench", str(file)).assert_refused(2, str(file))
    assert re.search(words, line)
    file.write_text(json.dumps(row, indent=2))
    dpr("benchmark", "score", "--format", "mt-bench", str(file)).assert_refused(2, "holds one JSON object", "rows")


def test_a_benchmarks_own_prompts_judge_and_its_own_file_is_written(
    dpr: Dpr, tmp_path: Path, loopback: Loopback
) -> None:
    loopback.answer = lambda call: completion("It is [[A>>B]]." if call.json["messages"][0]["role"] == "system" else "")
    asked = [Question(name, ("Why?",), category=name) for name in ("easy", "hard")]
    questions = lines(
        tmp_path / "question.jsonl", [{"uid": each.id, "prompt": "Why?", "category": each.category} for each in asked]
    )
    files = {}
    for model, given in {"mine": asked, "best at easy": asked[:1], "best at hard": asked[1:]}.items():
        files[model] = tmp_path / f"{model}.jsonl"
        files[model].write_text(LAYOUTS["arena-hard"].write(model, [(each, (f"{model}.",)) for each in given]))
    common = ["benchmark", "judge", "--format", "arena-hard", "--questions", str(questions)]
    common += ["--answers", str(files["mine"]), "--set", f"by.base_url={loopback.url}", "--set", "by.model=judge"]
    common += ["--set", f"prompts={arena(tmp_path / 'repository')}"]
    easy, hard = (["--baseline", str(files[f"best at {name}"])] for name in ("easy", "hard"))
    result = dpr(*common, *easy, *hard, "--official", str(tmp_path / "own"), "--json").json
    assert (result["baseline"], result["win_rate"]) == ("best at easy, best at hard", 50.0)
    assert not any("baseline" in line for line in result["warnings"])
    other = dpr(*common, "--baseline", str(files["mine"]), "--json").json
    for name in ("easy", "hard"):
        assert any(f"the baseline best at {name}, and here it is mine" in line for line in other["warnings"])
    assert result["official"]["official"]["categories_v2.0"] == {"easy": 50.0, "hard": 50.0}
    written = [json.loads(line) for line in (tmp_path / "own" / "mine.jsonl").read_text().splitlines()]
    assert [(row["baseline"], row["category"]) for row in written] == [
        ("best at easy", "easy"),
        ("best at hard", "hard"),
    ]
    scored = dpr("benchmark", "score", "--format", "arena-hard", str(tmp_path / "own" / "mine.jsonl"), "--json").json
    assert scored["models"]["mine"]["official"] == result["official"]["official"]
    for wrong, words in (
        ([*easy], "1 questions are left out"),
        ([*easy, "--baseline", str(files["mine"])], "the baseline best at hard, which judge.prompts name, is in none"),
    ):
        told = dpr(*common, *wrong)
        assert words in told.stdout + told.stderr
