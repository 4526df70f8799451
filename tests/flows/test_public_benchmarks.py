"""Answers to questions of a public benchmark: several turns, the official files, the judge's canaries, the report."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dpr_core.config.evaluation import AnswerConfig, BestOfNConfig, JudgeConfig, ReportConfig, ScriptedJudgeConfig
from dpr_core.config.official import ArenaHardConfig, MTBenchConfig
from dpr_core.data.encoding import decode_response
from dpr_core.errors import UsageError
from dpr_core.evaluation import judge as judges
from dpr_core.evaluation.official.layouts import LAYOUTS
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.rows import read_rows
from dpr_core.rollouts.in_process import InProcessEngine
from tasks.artifacts.store import Store
from tasks.registry import stage_named
from tasks.run_stage import Outcome, run_stage
from tasks.running.workspace import Workspace
from tasks.stages.answer import ANSWERS, read_answers, same_questions
from tasks.stages.judge import CANARIES
from tasks.stages.lineage import Lineage

pytestmark = pytest.mark.integration

MT = [
    {"question_id": 81, "category": "writing", "turns": ["Start at 1, add 2.", "Add 3."]},
    {"question_id": 111, "category": "math", "turns": ["Start at 2.", "Add 1, add 1."]},
    {"question_id": 151, "category": "humanities", "turns": ["Why?", "Why not?"]},
]


@pytest.fixture
def store(made: Any, open_store: Callable[[Path], Store]) -> Store:
    return open_store(made.home)


@pytest.fixture
def questions(tmp_path: Path) -> str:
    path = tmp_path / "question.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in MT))
    return str(path)


def answer(store: Store, source: str, **settings: Any) -> Outcome:
    config = AnswerConfig(**{"max_response_tokens": 8, **settings})
    return run_stage(stage_named("answer"), config, {"policy": source}, store=store)


def judge(store: Store, candidate: str, baseline: str, **settings: Any) -> Outcome:
    config = JudgeConfig(bootstrap_samples=100, **settings)
    return run_stage(stage_named("judge"), config, {"candidate": candidate, "baseline": baseline}, store=store)


def test_the_second_turn_is_asked_after_the_policys_own_first_answer(
    store: Store, made: Any, questions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = InProcessEngine.generate

    def generate(self: Any, prompts: Any, sampling: Any, *rest: Any) -> Any:
        drawn = original(self, prompts, sampling, *rest)
        seen.append((sampling.temperature, drawn))
        return drawn

    monkeypatch.setattr(InProcessEngine, "generate", generate)
    outcome = answer(store, made.id("sft"), benchmark=MTBenchConfig(path=questions, temperatures="own"))
    assert [(temperature, len(drawn)) for temperature, drawn in seen] == [(0.7, 1), (0.0, 1), (0.1, 1)] * 2
    rows = read_answers(store.fetch(outcome.id).path)
    tokenizer = Lineage(store).tokenizer(store.fetch(made.id("sft")))
    for row, first, second in zip(rows, seen[:3], seen[3:], strict=True):
        one, two = first[1][0], second[1][0]
        assert two.prompt[: len(one.prompt) + len(one.response)] == one.prompt + one.response
        between = two.prompt[len(one.prompt) + len(one.response) :]
        assert decode_response(tokenizer, between) == f"\n\n{row['question']['turns'][1]}\n"
        assert row["turns"] == [decode_response(tokenizer, c.response) for c in (one, two)]
        assert row["tokens"] == len(one.response) + len(two.response)
        assert row["right"] is None


def test_answers_stand_in_the_artifact_in_the_official_layout_too(
    store: Store, made: Any, questions: str, dpr: Callable[..., Any], tmp_path: Path
) -> None:
    benchmark = MTBenchConfig(path=questions)
    outcome = answer(store, made.id("reinforce"), benchmark=benchmark)
    folder = store.fetch(outcome.id).path
    rows = read_answers(folder)
    read = LAYOUTS["mt-bench"].answers(read_rows(folder / "official" / "dense-path-reinforce.jsonl"))
    expected = {str(row["question"]["id"]): tuple(row["turns"]) for row in rows}
    assert read == {"dense-path-reinforce": expected}
    file = tmp_path / "mine.jsonl"
    dpr("benchmark", "export", outcome.id, file, "--format", "mt-bench", "--model", "mine", home=made.home)
    assert LAYOUTS["mt-bench"].answers(read_rows(file)) == {"mine": expected}
    of_lab = store.fetch(made.id("answer DPR on lab")).path
    assert not (of_lab / "official").exists()


def test_best_of_n_chooses_at_every_turn(
    store: Store, made: Any, questions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[tuple[str, int, int]] = []
    monkeypatch.setattr(Workspace, "part", lambda self, *said: parts.append(said))
    outcome = answer(store, made.id("reward"), benchmark=MTBenchConfig(path=questions), policy=BestOfNConfig(n=3))
    folder = store.fetch(outcome.id).path
    assert [len(row["turns"]) for row in read_answers(folder)] == [2, 2, 2]
    assert (folder / "official" / "dense-path-best_of_n.jsonl").is_file()
    assert parts.count(("choosing", 9, 9)) == 2, "three answers to each question, and a choice at each turn"


def test_the_judge_sees_all_turns_and_the_report_says_what_the_canaries_found(
    store: Store, made: Any, questions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = MTBenchConfig(path=questions)
    ours, theirs = (answer(store, made.id(name), benchmark=benchmark).id for name in ("reinforce", "sft"))
    sound = judge(store, ours, theirs, by=ScriptedJudgeConfig(rule="longer"))
    assert not any("canary" in name for name in sound.metrics)
    monkeypatch.setattr(judges, "costs_money", lambda config: True)
    tried = judge(store, ours, theirs, by=ScriptedJudgeConfig(rule="first"))
    assert (tried.metrics["judge/canary_self"], tried.metrics["judge/canary_constant"]) == (1.0, 0.5)
    assert tried.metrics["judge/prompts"] == 3
    assert not (store.fetch(sound.id).path / CANARIES).exists()
    kept = json.loads((store.fetch(tried.id).path / CANARIES).read_text())
    assert kept == {name: value for name, value in tried.metrics.items() if "canary" in name}
    for outcome, words in ((sound, None), (tried, "favours the first place")):
        report = run_stage(stage_named("report"), ReportConfig(), {"DPR on mt_bench": outcome.id}, store=store)
        pages = [(store.fetch(report.id).path / name).read_text() for name in ("report.md", "report.html")]
        assert all(("Canaries" in page) == (words is not None) for page in pages)
        assert all(words is None or words in page for page in pages)


def test_answers_to_other_questions_are_not_compared(store: Store, made: Any, questions: str, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in MT[:2]))
    ours = answer(store, made.id("reinforce"), benchmark=MTBenchConfig(path=questions)).id
    theirs = answer(store, made.id("sft"), benchmark=MTBenchConfig(path=str(other))).id
    with pytest.raises(UsageError, match="are not to the same questions"):
        judge(store, ours, theirs, by=ScriptedJudgeConfig())


def test_questions_of_earlier_answers_may_have_no_category() -> None:
    first = Question("q", ("Why?",), category="hard_prompt")
    assert same_questions([first], [replace(first, category="")])
    assert not same_questions([first], [replace(first, turns=("How?",))])


def test_a_conversation_that_the_model_cannot_read_names_the_question(
    store: Store, made: Any, questions: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"question 81 has \d+ tokens, more than max_prompt_tokens=5"):
        answer(store, made.id("sft"), benchmark=MTBenchConfig(path=questions), max_prompt_tokens=5)
    with pytest.raises(UsageError, match=r"question 81: before turn [12] the conversation has \d+ tokens"):
        answer(store, made.id("sft"), benchmark=MTBenchConfig(path=questions), max_response_tokens=1020)


def test_rows_of_an_earlier_version_hold_one_text(tmp_path: Path) -> None:
    row = {"question": {"id": "a", "turns": ["Why?"], "system": "", "reference": None}, "text": "Because."}
    (tmp_path / ANSWERS).write_text(json.dumps(row) + "\n")
    assert read_answers(tmp_path)[0]["turns"] == ["Because."]


def test_a_benchmark_of_a_known_name_needs_only_a_path(tiny: Callable[..., Any], questions: str) -> None:
    scripted = "judge.by={type: scripted}"
    config = tiny(scripted, f"evaluation.benchmarks.mt_bench.path={questions}")
    assert config.evaluation.benchmarks["mt_bench"] == MTBenchConfig(path=questions)
    config = tiny(scripted, "evaluation.benchmarks.ah.type=arena_hard", "evaluation.benchmarks.ah.temperatures=own")
    assert config.evaluation.benchmarks["ah"] == ArenaHardConfig(temperatures="own")
    with pytest.raises(UsageError, match=r"mt_bench\.paht: no such field; did you mean path\?"):
        tiny(scripted, "evaluation.benchmarks.mt_bench.paht=x")
    with pytest.raises(UsageError, match="mt_bench has no results that a program can check"):
        tiny(f"evaluation.benchmarks.mt_bench.path={questions}")
