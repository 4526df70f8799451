"""Gold measures in a pipeline: answers that a program checks, and the report's table of them."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpr_core.config.evaluation import AnswerConfig, JudgeConfig, ReportConfig, VerifiableJudgeConfig
from dpr_core.config.gold import WordProblemsConfig
from tasks.artifacts.store import Store
from tasks.registry import stage_named
from tasks.run_stage import Outcome, run_stage
from tasks.stages.answer import read_answers
from tasks.stages.report import DOCUMENT, TABLE

pytestmark = pytest.mark.integration

PROBLEMS = [{"id": str(n), "question": f"Start at {n}, add 1, add 1, add 1.", "answer": (n + 3) % 5} for n in range(4)]


@pytest.fixture
def store(made: Any, open_store: Callable[[Path], Store]) -> Store:
    return open_store(made.home)


def answer(store: Store, source: str, **settings: Any) -> Outcome:
    config = AnswerConfig(**{"max_response_tokens": 12, **settings})
    return run_stage(stage_named("answer"), config, {"policy": source}, store=store)


def test_word_problems_are_measured_and_reported(
    store: Store, made: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PROBLEMS))
    benchmark = WordProblemsConfig(path=str(path))
    with caplog.at_level(logging.WARNING, "dense_path"):
        ours, theirs = (answer(store, made.id(name), benchmark=benchmark) for name in ("reinforce", "sft"))
    rows = read_answers(store.fetch(ours.id).path)
    assert [row["gold"]["right"] for row in rows] == [float(row["right"]) for row in rows]
    metrics = ours.metrics
    assert metrics["gold/right"] == metrics["answer/accuracy"] == sum(row["right"] for row in rows) / 4
    cut = sum(row["cut"] for row in rows)
    assert metrics["gold/cut"] == cut
    assert (f"word_problems: {cut} of the 4 answers were cut" in caplog.text) == bool(cut)
    judge = JudgeConfig(by=VerifiableJudgeConfig(), bootstrap_samples=100)
    sides = {"candidate": ours.id, "baseline": theirs.id}
    judged = run_stage(stage_named("judge"), judge, sides, store=store)
    reported = run_stage(stage_named("report"), ReportConfig(), {"DPR on problems": judged.id}, store=store)
    folder = store.fetch(reported.id).path
    document = json.loads((folder / TABLE).read_text())
    by_policy = {row["policy"]: row["gold"] for row in document["rows"]}
    assert by_policy["DPR"]["right"]["value"] == metrics["gold/right"]
    assert by_policy["SFT"]["right"]["value"] == theirs.metrics["gold/right"]
    assert any("DPR on problems" in note for note in document["notes"]) == bool(cut)
    assert "### Gold measures" in (folder / DOCUMENT).read_text()
    of_lab = json.loads((store.fetch(made.id("report")).path / TABLE).read_text())
    assert all("gold" not in row for row in of_lab["rows"])
