"""A judge behind an endpoint in whole commands: checked before any work, stopped, resumed, and tried with canaries."""

import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dpr_core.config.evaluation import JudgeConfig, JudgeExecutionConfig, OpenAIJudgeConfig
from dpr_core.errors import DensePathError
from dpr_core.evaluation.budget import BudgetReachedError
from dpr_core.evaluation.official import FORMATS
from dpr_core.evaluation.official.layouts import LAYOUTS
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.rows import read_rows
from flows import wiring
from tasks.artifacts.store import Store
from tasks.graph import plan, preflight
from tasks.registry import stage_named
from tasks.run_stage import Outcome, run_stage
from tests import forked
from tests.dpr_core.evaluation.protocols.made import RANKING, annotator
from tests.loopback import JUDGES, KEY, Call, Loopback, Reply, completion, judging, refused, serving

pytestmark = pytest.mark.integration

TINY = Path(__file__).with_name("tiny.yaml")
PAGE = "<html><body>Welcome to nginx!</body></html>"
BY_HASH = judging(JUDGES["hash"])

Dpr = Callable[..., Any]
OpenStore = Callable[[Path], Store]


def comparisons(server: Loopback) -> Counter[str]:
    """How often each comparison was asked for; the mark is another one each time."""
    asked = (call.json["messages"][-1]["content"] for call in server.calls)
    return Counter(re.sub("[0-9a-f]{16}", "", text) for text in asked if text.startswith("[BEGIN"))


def probes(server: Loopback) -> list[Call]:
    return [call for call in server.calls if not call.json["messages"][-1]["content"].startswith("[BEGIN")]


def slowly(call: Call) -> Reply:
    return replace(BY_HASH(call), after=0.1)


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_judges_goes_on_and_pays_nothing_twice(
    made: Any, loopback: Loopback, flow_environment: Callable[..., dict[str, str]]
) -> None:
    by = [f"judge.by.base_url={loopback.url}", "judge.by.type=openai", "judge.execution.concurrency=2"]
    command = ["-m", "flows.cli", "run", str(TINY), "--json"]
    command += [part for each in by for part in ("--set", each)]
    environment, folder = flow_environment(made.home), made.home.parent
    loopback.answer = slowly
    process = forked.Forked(command, environment, folder, new_session=True)
    until = time.monotonic() + 120
    while comparisons(loopback).total() < 20 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    assert process.poll() is None, process.stderr.read()
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    time.sleep(0.3)
    before = comparisons(loopback)
    assert before.total() >= 20
    loopback.answer = BY_HASH
    done = forked.run(command, environment, folder)
    assert done.returncode == 0, done.stderr
    after = comparisons(loopback)
    twice = {asked: times for asked, times in after.items() if times > 1}
    assert len(after) > len(before)
    assert len(twice) <= 2 * 2, "more than two judges, of DPR and of the extrapolation, had under way, two each"
    assert set(twice.values()) <= {2}
    assert set(twice) <= set(before)
    # Two judge stages need the endpoint; each command asks it once whether it is there.
    assert len(probes(loopback)) == 2
    assert all(call.json["max_completion_tokens"] == 16 for call in probes(loopback))
    stages = {entry["name"]: entry for entry in json.loads(done.stdout)["stages"]}
    judged = [entry for entry in stages.values() if entry["stage"] == "judge"]
    assert [entry["metrics"]["judge/prompts"] for entry in judged] == [12.0] * len(judged)
    assert len(judged) == 2
    held = [path for path in made.home.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert held == []
    assert KEY not in done.stdout + done.stderr


def judge(store: Store, made: Any, by: OpenAIJudgeConfig, **execution: Any) -> Outcome:
    config = JudgeConfig(by=by, bootstrap_samples=100, execution=JudgeExecutionConfig(retries=0, **execution))
    answers = {"candidate": made.id("answer DPR on lab"), "baseline": made.id("answer SFT on lab")}
    return run_stage(stage_named("judge"), config, answers, store=store)


def test_a_budget_that_is_reached_and_raised_pays_nothing_twice(
    made: Any, loopback: Loopback, open_store: OpenStore
) -> None:
    loopback.answer = BY_HASH
    store, by = open_store(made.home), OpenAIJudgeConfig(base_url=loopback.url, max_tokens=64)
    prices = {"dollars_per_million_read": 1000.0, "dollars_per_million_written": 1000.0}
    with pytest.raises(BudgetReachedError, match="raise the budget and run the same command again"):
        judge(store, made, by, budget_dollars=4.0, **prices)
    before = comparisons(loopback)
    # 120 tokens at a tenth of a cent each.
    assert 0 < 0.12 * before.total() <= 4.0
    outcome = judge(store, made, by, budget_dollars=100.0, **prices)
    after = comparisons(loopback)
    assert len(after) > len(before)
    assert set(after.values()) == {1}
    assert outcome.metrics["judge/unreadable"] == 0.0
    judge(store, made, by.model_copy(update={"temperature": 1.0}), **prices)
    assert set(comparisons(loopback).values()) == {2}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (JUDGES["first"], ["favours the first place: between two equal answers the first won 100%"]),
        (
            lambda shown: (
                "A" if shown.answers[0].startswith("Thank you") else "B" if "Thank" in shown.answers[1] else "TIE"
            ),
            ["fooled by an answer that says nothing: it won 100%"],
        ),
        (
            lambda shown: (
                "B" if shown.answers[0].startswith("Thank you") else "A" if "Thank" in shown.answers[1] else "TIE"
            ),
            [],
        ),
    ],
    ids=["always A", "fooled", "sound"],
)
def test_what_the_canaries_find_is_in_the_log_and_in_the_report(
    made: Any,
    loopback: Loopback,
    open_store: OpenStore,
    caplog: pytest.LogCaptureFixture,
    answer: Any,
    words: list[str],
) -> None:
    loopback.answer = judging(answer)
    store = open_store(made.home)
    outcome = judge(store, made, OpenAIJudgeConfig(base_url=loopback.url))
    said = [record.getMessage() for record in caplog.records if "judge" in record.getMessage()]
    complaints = [line for line in said if line.startswith("The judge")]
    assert len(complaints) == len(words)
    report = run_stage(stage_named("report"), _report_config(), {"DPR on lab": outcome.id}, store=store)
    page = (store.fetch(report.id).path / "report.md").read_text()
    assert ("Canaries" in page) == bool(words)
    assert all(word in page and word in line for word, line in zip(words, complaints, strict=True))


def test_official_prompts_judge_in_a_pipeline_and_leave_the_benchmarks_own_file(
    made: Any, loopback: Loopback, open_store: OpenStore, tmp_path: Path
) -> None:
    loopback.answer = lambda call: completion("[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]")
    config = JudgeConfig(
        by=OpenAIJudgeConfig(base_url=loopback.url), prompts=str(annotator(tmp_path, RANKING)), bootstrap_samples=100
    )
    answers = {"candidate": made.id("answer DPR on lab"), "baseline": made.id("answer SFT on lab")}
    store = open_store(made.home)
    outcome = run_stage(stage_named("judge"), config, answers, store=store)
    folder = store.fetch(outcome.id).path
    rows = read_rows(folder / "official" / "annotations.json")
    assert {row["generator_2"] for row in rows} == {"dense-path-reinforce"}
    assert {row["preference"] for row in rows} <= {1.0, 1.5, 2.0}
    (score,) = FORMATS["alpaca-eval"](rows, [], []).values()
    assert json.loads((folder / "official.json").read_text())["official"] == score.official
    assert outcome.metrics["judge/official/win_rate"] == score.official["win_rate"]
    assert loopback.requests[-1]["max_completion_tokens"] == 50, "the prompts' own limit"
    report = run_stage(stage_named("report"), _report_config(), {"DPR on lab": outcome.id}, store=store)
    page = (store.fetch(report.id).path / "report.md").read_text()
    assert "judge prompts made" in page


def _report_config() -> Any:
    return stage_named("report").config()


def test_a_judge_that_cannot_be_read_is_stopped_at_the_canaries(
    made: Any, loopback: Loopback, open_store: OpenStore
) -> None:
    loopback.answer = lambda call: completion("\x1b[31mAs a language model, I like both.")
    store = open_store(made.home)
    with pytest.raises(
        DensePathError, match="none of the 8 verdicts on the canaries could be read.*I like both"
    ) as told:
        judge(store, made, OpenAIJudgeConfig(base_url=loopback.url, verdicts="text"), unreadable_retries=1)
    (kept,) = store.home.rglob(f"*{str(told.value).rpartition(' ')[2]}/**/canary_replies.jsonl")
    assert kept.read_text().count("I like both") == 8
    assert comparisons(loopback).total() == 8
    # Both orders of an answer against itself read the same.
    assert len(comparisons(loopback)) == 6


WRONG = {
    "key": (refused(401, f"Incorrect API key provided: {KEY}"), ["refused the key in OPENAI_API_KEY (HTTP 401)"]),
    "model": (refused(404, "The model `gpt-5o` does not exist", "model_not_found"), ["gpt-5o", "check judge.by.model"]),
    "page": (Reply(PAGE), ["answered, but not with a chat completion", "check judge.by.base_url"]),
    "page of an error": (Reply(PAGE, 404), ["HTTP 404 with a page of HTML", "check judge.by.model, and judge.by.base"]),
    "money": (refused(429, "You exceeded your quota", "insufficient_quota"), ["nothing left to spend"]),
    "schema": (refused(400, "response_format is not supported"), ["does not take a schema"]),
}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Arguments of `dpr benchmark judge` about two small answer files."""
    questions = tmp_path / "question.jsonl"
    questions.write_text(json.dumps({"question_id": 81, "category": "math", "turns": ["Write.", "Rewrite."]}) + "\n")
    arguments = ["--format", "mt-bench", "--questions", str(questions)]
    for role, turns in (("answers", ("a longer text", "more")), ("baseline", ("short", "text"))):
        path = tmp_path / f"{role}.jsonl"
        path.write_text(LAYOUTS["mt-bench"].write(role, [(Question("81", ("Write.", "Rewrite.")), turns)]))
        arguments += [f"--{role}", str(path)]
    return ["benchmark", "judge", *arguments, "--json"]


def by(url: str, *more: str) -> list[str]:
    assignments = (f"by.base_url={url}", "by.verdicts=schema", *more)
    return [part for each in assignments for part in ("--set", each)]


@pytest.mark.parametrize(("reply", "words"), WRONG.values(), ids=WRONG)
def test_what_no_request_can_succeed_with_is_one_line_after_one_request(
    dpr: Dpr, loopback: Loopback, files: list[str], reply: Reply, words: list[str]
) -> None:
    loopback.answer = lambda call: reply
    line = dpr(*files, *by(loopback.url)).assert_refused(1, *words)
    assert len(line.strip().splitlines()) == 1
    assert len(loopback.calls) == 1
    assert KEY not in line
    assert "html" not in line


@pytest.mark.parametrize("url", ["http://nowhere.invalid/v1", None], ids=["no such name", "nobody listens"])
def test_an_address_where_nobody_is(dpr: Dpr, loopback: Loopback, files: list[str], url: str | None) -> None:
    with serving() as gone:
        address = url or gone.url
    line = dpr(*files, *by(address)).assert_refused(1, f"{address} cannot be reached: ", "check judge.by.base_url")
    assert len(line.strip().splitlines()) == 1


@pytest.mark.parametrize("first", [refused(429, "busy"), refused(503, "loading"), replace(completion("x"), length=0)])
def test_an_endpoint_that_is_there_but_busy_is_not_held_against_it(
    dpr: Dpr, loopback: Loopback, files: list[str], first: Reply
) -> None:
    longer = judging(JUDGES["longer"])
    loopback.answer = lambda call: first if len(loopback.calls) == 1 else longer(call)
    assert dpr(*files, *by(loopback.url)).json["win_rate"] == 100.0
    assert len(probes(loopback)) == 1


def test_kept_verdicts_need_no_endpoint_where_none_is_looked_for(
    dpr: Dpr, files: list[str], loopback: Loopback
) -> None:
    loopback.answer = judging(JUDGES["longer"])
    settings = by(loopback.url, "execution.check_endpoint=false")
    assert dpr(*files, *settings).json["win_rate"] == 100.0
    assert probes(loopback) == []
    loopback.answer = lambda call: refused(401, "no")
    assert dpr(*files, *settings).json["win_rate"] == 100.0
    dpr(*files, *by(loopback.url)).assert_refused(1, "refused the key")


def test_a_very_long_answer_is_cut_with_a_count(dpr: Dpr, files: list[str], loopback: Loopback) -> None:
    loopback.answer = judging(JUDGES["longer"])
    path = Path(files[files.index("--answers") + 1])
    path.write_text(
        LAYOUTS["mt-bench"].write("answers", [(Question("81", ("Write.", "Rewrite.")), ("x" * 200_000, "y"))])
    )
    assert dpr(*files, *by(loopback.url)).json["answers_cut"] == 1
    assert max(len(text) for text in comparisons(loopback)) < 101_000
    shown = dpr(*files[:-1], *by(loopback.url)).stdout
    assert "1 answers were longer than by.max_answer_characters and were cut there" in shown


def test_a_dry_run_needs_nobody(dpr: Dpr, files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert dpr(*files, "--dry-run", *by("http://nowhere.invalid/v1")).json["requests"] == 6


def test_each_endpoint_is_asked_once_before_a_pipeline_and_not_where_no_judge_is_to_run(
    made: Any, loopback: Loopback, tiny: Callable[..., Any], open_store: OpenStore
) -> None:
    store = open_store(made.home)
    nodes = wiring.nodes(tiny())
    preflight(nodes, plan(nodes, store))
    assert loopback.calls == []
    endpoint = ["judge.by.type=openai", f"judge.by.base_url={loopback.url}"]
    nodes = wiring.nodes(tiny(*endpoint))
    planned = plan(nodes, store)
    assert [step.stage for step in planned if step.status == "run"].count("judge") == 2
    preflight(nodes, planned)
    assert len(loopback.calls) == 1
    more = wiring.nodes(tiny(*endpoint, "judge.by.model=other", "name=other"))
    both = [*nodes, *(replace(node, name=f"other {node.name}") for node in more if node.stage == "judge")]
    status = [*planned, *(replace(step, name=f"other {step.name}") for step in planned)]
    preflight(both, status)
    assert [call.json["model"] for call in loopback.calls[1:]] == ["gpt-4o-2024-08-06", "other"]


def test_a_wrong_key_is_known_before_the_first_stage(dpr_process: Dpr, loopback: Loopback, tmp_path: Path) -> None:
    loopback.answer = lambda call: refused(401, f"Incorrect API key provided: {KEY}")
    endpoint = ["--set", "judge.by.type=openai", "--set", f"judge.by.base_url={loopback.url}"]
    result = dpr_process("run", TINY, *endpoint, "--json", home=tmp_path / "home")
    line = result.assert_refused(1, "refused the key in OPENAI_API_KEY (HTTP 401)")
    assert KEY not in line + result.stderr
    assert len(loopback.calls) == 1
    assert "subsample" not in result.stderr
