"""Ratings from 1 to 10: the stage, the pipeline's graph, the report, and files without a pipeline."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpr_core.config.evaluation import (
    AnswerConfig,
    JudgeConfig,
    OpenAIRaterConfig,
    RateConfig,
    ReportConfig,
    ScriptedJudgeConfig,
    ScriptedRaterConfig,
)
from dpr_core.config.official import MTBenchConfig
from dpr_core.errors import DensePathError, UsageError
from dpr_core.evaluation.official.layouts import LAYOUTS
from dpr_core.evaluation.rows import read_rows
from flows.wiring import nodes
from tasks.artifacts.store import Store
from tasks.registry import stage_named
from tasks.run_stage import Outcome, run_stage
from tasks.stages.answer import read_answers
from tasks.stages.judge import CANARIES
from tasks.stages.rate import JUDGMENTS, RATED, RATINGS
from tests.loopback import Loopback, completion

pytestmark = pytest.mark.integration

MT = [
    {"question_id": 81, "category": "writing", "turns": ["Start at 1, add 2.", "Add 3."]},
    {"question_id": 111, "category": "math", "turns": ["Start at 2.", "Add 1, add 1."]},
]


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def store(made: Any, open_store: Callable[[Path], Store]) -> Store:
    return open_store(made.home)


@pytest.fixture
def questions(tmp_path: Path) -> str:
    return lines(tmp_path / "question.jsonl", MT)


@pytest.fixture
def references(tmp_path: Path) -> str:
    rows = [{"question_id": 111, "model_id": "gpt-4", "choices": [{"turns": ["2", "4"]}]}]
    return lines(tmp_path / "gpt-4.jsonl", rows)


def answer(store: Store, source: str, questions: str, references: str | None = None) -> str:
    benchmark = MTBenchConfig(path=questions, references=references)
    config = AnswerConfig(benchmark=benchmark, max_response_tokens=8)
    return run_stage(stage_named("answer"), config, {"policy": source}, store=store).id


def rate(store: Store, answers: str, **settings: Any) -> Outcome:
    config = RateConfig(**{"by": ScriptedRaterConfig(), "bootstrap_samples": 100, **settings})
    return run_stage(stage_named("rate"), config, {"answers": answers}, store=store)


def test_what_the_stage_writes_scores_to_the_same_numbers(
    store: Store, made: Any, questions: str, references: str, dpr: Callable[..., Any], tmp_path: Path
) -> None:
    answers = answer(store, made.id("sft"), questions, references)
    outcome = rate(store, answers, judgings=2)
    folder = store.fetch(outcome.id).path
    document = json.loads((folder / RATINGS).read_text())
    expected = [
        [min(1 + len(text) // 20, 10) for text in row["turns"]] for row in read_answers(store.fetch(answers).path)
    ]
    assert (document["turn1"], document["turn2"]) == tuple(sum(turn) / 2 for turn in zip(*expected, strict=True))
    assert (document["n"], document["unscored"], document["judgings"]) == (8, 0, 2)
    scored = dpr(
        "benchmark", "score", folder / JUDGMENTS, "--format", "mt-bench", "--json", "--questions", questions,
        "--answers", store.fetch(answers).path / "official" / "dense-path-sft.jsonl",
    ).json["models"]["dense-path-sft"]  # fmt: skip
    categories = document["categories"]
    assert scored["official"] == {n: document[n] for n in ("turn1", "turn2", "average")} | {"categories": categories}
    assert scored["paper"]["median_of_judgings"] == document["median_of_judgings"]
    assert scored["warnings"] == [
        "4 questions were judged more than once; the official mean counts every row (81 turn 1, 81 turn 2, 111 turn 1, "
        "...)"
    ]
    shown = {row["turn"]: row["user_prompt"] for row in read_rows(folder / JUDGMENTS) if row["question_id"] == 111}
    assert "[BEGIN reference to turn 2 MARK]\n4\n" in shown[2]
    assert "[BEGIN reference to turn 2" not in shown[1]
    measured = store.record(outcome.id).results
    assert measured["rate/average"] == document["average"]
    # A rater that costs nothing is not tried with canaries.
    assert "rate/canary_constant" not in measured
    assert rate(store, answers, judgings=2).status == "reused"
    assert rate(store, answers, judgings=3).status == "ran"


def test_too_much_that_cannot_be_read_fails_the_stage_and_keeps_the_replies(
    store: Store, made: Any, questions: str
) -> None:
    answers = answer(store, made.id("sft"), questions)
    unreadable = ScriptedRaterConfig(rule="unreadable")
    with pytest.raises(DensePathError, match=rf"4 of 4 ratings could not be read.*rate/{JUDGMENTS} of run"):
        rate(store, answers, by=unreadable)
    from dpr_core.config.evaluation import JudgeExecutionConfig

    outcome = rate(store, answers, by=unreadable, execution=JudgeExecutionConfig(max_unreadable_share=1.0))
    assert outcome.metrics["rate/unscored"] == 4
    assert "rate/average" not in outcome.metrics


def test_a_mathematical_question_without_a_reference_is_named(
    store: Store, made: Any, questions: str, references: str, caplog: pytest.LogCaptureFixture
) -> None:
    rate(store, answer(store, made.id("sft"), questions), seed=1)
    assert "1 questions of math have no reference answer" in caplog.text
    caplog.clear()
    rate(store, answer(store, made.id("sft"), questions, references), seed=1)
    assert "no reference answer" not in caplog.text


def test_a_model_rates_through_the_client_and_nothing_twice(
    store: Store, made: Any, questions: str, loopback: Loopback
) -> None:
    answers = answer(store, made.id("sft"), questions)
    loopback.answer = lambda call: completion("Fine.\nRATING: [[7]]")
    by = OpenAIRaterConfig(model="m", base_url=loopback.url)
    first = rate(store, answers, by=by)
    asked = len(loopback.requests)
    assert asked == 8  # Two questions of two turns, and the constant answer to them.
    assert (first.metrics["rate/average"], first.metrics["rate/canary_constant"]) == (7.0, 7.0)
    assert json.loads((store.fetch(first.id).path / CANARIES).read_text()) == {"rate/canary_constant": 7.0}
    again = rate(store, answers, by=by, judgings=2)
    assert len(loopback.requests) == asked + 4
    assert again.metrics["rate/average"] == 7.0
    assert store.record(first.id).config["by"]["template"]


def test_every_policy_is_rated_on_mt_bench_alone(tiny: Callable[..., Any], questions: str) -> None:
    changes = ["judge.by={type: scripted}", f"evaluation.benchmarks.mt_bench.path={questions}", "seed=3"]
    assert not [node for node in nodes(tiny(*changes)) if node.stage == "rate"]
    config = tiny(*changes, "rate.by.type=scripted", "rate.judgings=3")
    assert (config.rate.judgings, config.rate.seed) == (3, 3)
    assert "seed" not in config.model_dump(mode="json")["rate"]
    graph = {node.name: node for node in nodes(config)}
    rated = {name: node.inputs for name, node in graph.items() if node.stage == "rate"}
    assert rated == {
        f"rate {policy} on mt_bench": {"answers": f"@answer {policy} on mt_bench"}
        for policy in ("SFT", "DPR", "extrapolated")
    }
    roles = graph["report"].inputs
    assert {role: source for role, source in roles.items() if role.endswith(RATED)} == {
        f"{name.removeprefix('rate ')}{RATED}": f"@{name}" for name in rated
    }
    assert "SFT on mt_bench" not in roles


def test_the_report_shows_ratings_in_a_table_of_their_own(store: Store, made: Any, questions: str) -> None:
    answers = {
        name: answer(store, made.id(source), questions) for name, source in (("SFT", "sft"), ("DPR", "reinforce"))
    }
    config = JudgeConfig(by=ScriptedJudgeConfig(), bootstrap_samples=100)
    sides = {"candidate": answers["DPR"], "baseline": answers["SFT"]}
    inputs = {"DPR on mt_bench": run_stage(stage_named("judge"), config, sides, store=store).id}
    for judgings, median in ((1, False), (2, True)):
        rated = {
            f"{name} on mt_bench{RATED}": rate(store, each, judgings=judgings).id for name, each in answers.items()
        }
        report = run_stage(stage_named("report"), ReportConfig(), inputs | rated, store=store)
        folder = store.fetch(report.id).path
        document = (folder / "report.md").read_text()
        ratings = document[document.index("Ratings") :]
        assert all(f"| {name} | mt\\_bench | scripted |" in ratings for name in answers)
        assert ("median of judgings" in ratings) is median
        page = (folder / "report.html").read_text()
        assert "Ratings" in page
        assert "rated by" in page
        numbers = json.loads((folder / "table.json").read_text())["ratings"]
        assert [row["policy"] for row in numbers] == ["DPR", "SFT"]


def test_a_file_is_rated_without_a_pipeline(
    dpr: Callable[..., Any], questions: str, references: str, tmp_path: Path, loopback: Loopback
) -> None:
    from dpr_core.evaluation.questions import Question

    given = [(Question(str(row["question_id"]), tuple(row["turns"])), ("a" * 40, "b")) for row in MT]
    answers = tmp_path / "mine.jsonl"
    answers.write_text(LAYOUTS["mt-bench"].write("mine", given))
    output = tmp_path / "judgments.jsonl"
    common = ["benchmark", "rate", "--answers", answers, "--questions", questions, "--references", references]
    scripted = dpr(*common, "--set", "by.type=scripted", "--output", output, "--json").json
    assert (scripted["model"], scripted["judge"], scripted["unanswered"]) == ("mine", "scripted", [])
    assert (scripted["turn1"], scripted["turn2"], scripted["average"]) == (3.0, 1.0, 2.0)
    assert [row["score"] for row in read_rows(output)] == [3, 1, 3, 1]
    by = ["--set", f"by.base_url={loopback.url}", "--set", "by.model=gpt-4o", "--set", "judgings=2"]
    price = dpr(*common, *by, "--dry-run", "--json").json
    assert (price["requests"], price["tokens_written_at_most"], loopback.requests) == (12, 12 * 2048, [])
    loopback.answer = lambda call: completion("RATING: [[4]]")
    shown = dpr(*common, *by, "--set", "execution.check_endpoint=false")
    assert shown.status == 0
    assert "4.00 [4.00, 4.00]" in shown.stdout
    assert "fooled by an answer that says nothing" in shown.stdout
    assert len(loopback.requests) == 12


def test_files_that_do_not_fit_are_refused(dpr: Callable[..., Any], questions: str, tmp_path: Path) -> None:
    from dpr_core.evaluation.questions import Question

    answers = tmp_path / "mine.jsonl"
    common = ["benchmark", "rate", "--answers", answers, "--questions", questions, "--set", "by.type=scripted"]
    answers.write_text(LAYOUTS["mt-bench"].write("mine", [(Question("999", ("?", "?")), ("a", "b"))]))
    dpr(*common).assert_refused(2, "1 answers are to questions that are not in the questions file, such as 999")
    answers.write_text(LAYOUTS["mt-bench"].write("mine", [(Question("81", ("?",)), ("a",))]))
    dpr(*common).assert_refused(2, "no question has been answered in all its turns")
    answers.write_text(LAYOUTS["mt-bench"].write("mine", [(Question("81", ("?", "?")), ("a", "b"))]))
    assert dpr(*common, "--json").json["unanswered"] == ["111"]
    prompts = lines(tmp_path / "judge_prompts.jsonl", [{"name": "single-v1"}])
    dpr(*common, "--set", f"prompts={prompts}").assert_refused(2, "no judge prompt called")


def test_a_rater_that_cannot_work_is_known_before_any_training(tmp_path: Path) -> None:
    settings = RateConfig(by=ScriptedRaterConfig(), prompts=lines(tmp_path / "judge_prompts.jsonl", [{"name": "x"}]))
    with pytest.raises(UsageError, match="no judge prompt called"):
        stage_named("rate").preflight([settings])
