"""A dry run tells what judging would cost, and asks nobody; the judge's identity is kept with its verdicts."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpr_core.config.evaluation import JudgeConfig, JudgeExecutionConfig, OpenAIJudgeConfig
from dpr_core.evaluation.judge import judging_cost
from dpr_core.evaluation.pairwise import Answer, Pair
from dpr_core.evaluation.prompts import PAIRWISE_DIGEST
from tasks.artifacts.store import Store
from tasks.registry import stage_named
from tasks.run_stage import run_stage
from tasks.stages.answer import answered, read_answers
from tasks.stages.judge import GAMES, JUDGE
from tests.loopback import MODEL, Loopback, completion

pytestmark = pytest.mark.integration

TINY = Path(__file__).with_name("tiny.yaml")

Open = Callable[[Path], Store]


def test_answers_that_are_there_are_counted_as_they_are(
    made: Any, dpr: Any, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    change = ("--set", "judge.by={type: openai}", "--set", "judge.execution.canaries=0")
    document = dpr("run", TINY, *change, "--dry-run", "--json", home=made.home).json
    assert {step["stage"] for step in document["plan"] if step["status"] == "run"} == {"judge", "report"}
    store = open_store(made.home)
    sides = {
        name: answered(read_answers(store.fetch(made.id(f"answer {name} on lab")).path))
        for name in ("SFT", "DPR", "extrapolated")
    }
    by_hand = [
        judging_cost(
            JudgeConfig(by=OpenAIJudgeConfig(), execution=JudgeExecutionConfig(canaries=0)),
            [
                Pair(q, Answer(ours), Answer(theirs))
                for (q, ours), (_, theirs) in zip(sides[name], sides["SFT"], strict=True)
            ],
        )
        for name in ("DPR", "extrapolated")
    ]
    (line,) = document["judging"]["by_benchmark"]
    assert (line["stage"], line["benchmark"], line["judgments"], line["prompts"]) == ("judge", "lab", 2, 12)
    assert line["cost"] == document["judging"]["total"] == (by_hand[0] + by_hand[1]).as_dict()
    assert line["cost"]["requests"] == 2 * 2 * 12
    assert not any("not there yet" in said for said in document["judging"]["assumed"])


def test_people_are_shown_the_costs_where_there_are_any(made: Any, dpr: Any) -> None:
    shown = dpr("run", TINY, "--set", "judge.by={type: openai}", "--dry-run", home=made.home).stdout
    assert "What judging would cost" in shown
    assert "nothing was run" in shown
    assert "cost" not in dpr("run", TINY, "--plan", home=made.home).stdout


def test_a_judge_leaves_word_of_who_it_was(
    made: Any, open_store: Open, loopback: Loopback, caplog: pytest.LogCaptureFixture
) -> None:
    def alternating(call: Any) -> Any:
        said = completion("VERDICT: TIE")
        said.body["system_fingerprint"] = f"fp_{len(loopback.calls) % 2}"
        return said

    loopback.answer = alternating
    store = open_store(made.home)
    by = OpenAIJudgeConfig(model=MODEL, base_url=loopback.url, verdicts="text", max_tokens=64)
    config = JudgeConfig(by=by, bootstrap_samples=100, execution=JudgeExecutionConfig(canaries=0, concurrency=1))
    inputs = {"candidate": made.id("answer DPR on lab"), "baseline": made.id("answer SFT on lab")}
    outcome = run_stage(stage_named("judge"), config, inputs, store=store)
    folder = store.fetch(outcome.id).path
    kept = json.loads((folder / JUDGE).read_text())
    games = [json.loads(line) for line in (folder / GAMES).read_text().splitlines()]
    written = Counter(game["details"]["system_fingerprint"] for game in games)
    assert (kept["model"], kept["temperature"], kept["template"]) == (MODEL, 0.0, PAIRWISE_DIGEST)
    assert kept["models"] == {MODEL: 24}
    assert kept["system_fingerprints"] == written
    assert sorted(written) == ["fp_0", "fp_1"]
    assert f"judged: fp_0 ({written['fp_0']} replies), fp_1 ({written['fp_1']} replies)." in caplog.text
