"""The report stage: what it says of a pipeline's own judgments, where it is kept, and where it links to."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dpr_core.config.evaluation import AnswerConfig, JudgeConfig, ReportConfig, ScriptedJudgeConfig
from dpr_core.errors import UsageError
from dpr_core.stats import length_adjusted_rate, paired_test
from tasks.artifacts.store import Store
from tasks.registry import stage_named
from tasks.run_stage import Outcome, run_stage
from tasks.stages.answer import read_answers
from tasks.stages.report import BESIDE, DOCUMENT, PAGE, TABLE

pytestmark = pytest.mark.integration


@pytest.fixture
def store(made: Any, open_store: Callable[[Path], Store]) -> Store:
    return open_store(made.home)


def judge(store: Store, made: Any, policy: str, rule: str = "longer") -> str:
    config = JudgeConfig(by=ScriptedJudgeConfig(rule=rule), bootstrap_samples=100)
    sides = {"candidate": made.id(f"answer {policy} on lab"), "baseline": made.id("answer SFT on lab")}
    return run_stage(stage_named("judge"), config, sides, store=store).id


def report(store: Store, judgments: dict[str, str], not_before: datetime | None = None) -> Outcome:
    return run_stage(stage_named("report"), ReportConfig(), judgments, store=store, not_before=not_before)


def scores_of(store: Store, judgment: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for line in (store.fetch(judgment).path / "games.jsonl").read_text().splitlines():
        game = json.loads(line)
        found.setdefault(game["question_id"], []).append(game["score"])
    return found


def test_the_numbers_are_those_of_the_games_and_the_answers(store: Store, made: Any) -> None:
    ids = {f"{policy} on lab": judge(store, made, policy) for policy in ("DPR", "extrapolated")}
    outcome = report(store, ids)
    document = json.loads((store.fetch(outcome.id).path / TABLE).read_text())
    rows = {row["policy"]: row for row in document["rows"]}
    means = {
        policy: [sum(games) / 2 for games in scores_of(store, ids[f"{policy} on lab"]).values()]
        for policy in ("DPR", "extrapolated")
    }
    lengths = {
        policy: [row["tokens"] for row in read_answers(store.fetch(made.id(f"answer {policy} on lab")).path)]
        for policy in ("SFT", "DPR", "extrapolated")
    }
    for policy, scores in means.items():
        row = rows[policy]
        assert row["win_rate"] == pytest.approx(100 * sum(scores) / len(scores))
        expected = length_adjusted_rate(scores, lengths[policy], lengths["SFT"], 100, 0)
        assert expected is not None
        assert row["length_adjusted_rate"] == pytest.approx(expected.rate)
        assert row["length_adjusted_interval"] == pytest.approx([expected.low, expected.high])
        assert row["baseline_tokens"] == pytest.approx(sum(lengths["SFT"]) / len(lengths["SFT"]))
        assert (row["unreadable_rate"], row["scored_prompts"]) == (0.0, len(scores))
        assert outcome.metrics[f"lab/{policy}/length_adjusted_rate"] == pytest.approx(expected.rate)
    (pair,) = document["paired_tests"]
    test = paired_test(means["DPR"], means["extrapolated"], 100, 0)
    assert test is not None
    assert (pair["first"], pair["second"]) == ("DPR", "extrapolated")
    assert (pair["difference"], pair["p_value"]) == pytest.approx((test.difference, test.p_value))


def test_a_gain_by_the_judge_that_is_a_loss_elsewhere_is_warned_of(
    store: Store, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_dpr = store.fetch(made.id("answer DPR on lab")).path

    def written(folder: Path) -> list[dict[str, Any]]:
        text = "so " * 19 if folder == of_dpr else "I cannot help."
        return [{**row, "turns": [text], "right": folder != of_dpr} for row in read_answers(folder)]

    monkeypatch.setattr("tasks.stages.judge.read_answers", written)
    monkeypatch.setattr("tasks.stages.judgments.read_answers", written)
    config = JudgeConfig(by=ScriptedJudgeConfig(rule="longer"), bootstrap_samples=101)
    sides = {"candidate": made.id("answer DPR on lab"), "baseline": made.id("answer SFT on lab")}
    inputs = {"DPR on judged": run_stage(stage_named("judge"), config, sides, store=store).id}
    inputs |= {f"{policy} on checked": made.id(f"answer {policy} on lab") for policy in ("DPR", "SFT")}
    outcome = report(store, inputs)
    document = json.loads((store.fetch(outcome.id).path / TABLE).read_text())
    repetition = 1 - 1 / 16
    found = {(row["policy"], row["benchmark"]): row for row in document["rows"]}
    assert found["DPR", "checked"]["repetition"] == pytest.approx(repetition)
    assert (found["DPR", "checked"]["win_rate"], found["SFT", "checked"]["is_judged"]) == (None, False)
    assert (found["SFT", "judged"]["refusals"], outcome.metrics["judged/DPR/refusals"]) == (1.0, 0.0)
    measured = [(each["benchmark"], each["measure"], each["difference"]) for each in document["capabilities"]]
    expected = [("right", -1.0), ("repetition", repetition), ("refusals", -1.0)]
    assert measured == [(name, *each) for name in ("judged", "checked") for each in expected]
    assert document["notes"][0].startswith(
        "DPR wins on judged by the judge, but is worse than SFT by what a program measures: accuracy % -100.0 "
        "[-100.0, -100.0] on judged, repeated 4-grams % +93.8 [+93.8, +93.8] on judged, accuracy % -100.0"
    )
    assert "Did anything else break?" in (store.fetch(outcome.id).path / PAGE).read_text()


def test_answers_that_kept_no_category_are_judged_beside_those_that_did(
    store: Store, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_sft = store.fetch(made.id("answer SFT on lab")).path

    def written(folder: Path) -> list[dict[str, Any]]:
        rows = read_answers(folder)
        for number, row in enumerate(rows):
            row["question"]["category"] = "" if folder == of_sft else ("coding", "poems")[number % 2]
        return rows

    monkeypatch.setattr("tasks.stages.judge.read_answers", written)
    monkeypatch.setattr("tasks.stages.judgments.read_answers", written)
    config = JudgeConfig(by=ScriptedJudgeConfig(rule="longer"), bootstrap_samples=102)
    sides = {"candidate": made.id("answer DPR on lab"), "baseline": made.id("answer SFT on lab")}
    outcome = report(store, {"DPR on lab": run_stage(stage_named("judge"), config, sides, store=store).id})
    document = json.loads((store.fetch(outcome.id).path / TABLE).read_text())
    assert set(document["win_rates_by_category"]["DPR on lab"]) == {"coding", "poems"}


def test_the_page_beside_the_payload_names_every_artifact_and_the_payload_none(store: Store, made: Any) -> None:
    judgment = judge(store, made, "DPR")
    outcome = report(store, {"DPR on lab": judgment})
    payload = store.fetch(outcome.id).path
    beside = payload.parent / BESIDE
    named = [judgment, *(made.id(n) for n in ("answer DPR on lab", "answer SFT on lab", "reinforce", "sft"))]
    page, document = (beside / PAGE).read_text(), (beside / DOCUMENT).read_text()
    assert all(f'title="{run_id}">dpr show {run_id[:8]}<' in page for run_id in named)
    assert all(f"dpr show {run_id[:8]}" in document for run_id in named)
    assert "http" not in page.replace("http-equiv", "")
    for name in (PAGE, DOCUMENT, TABLE):
        assert not any(run_id[:8] in (payload / name).read_text() for run_id in named)
        assert str(made.home) not in (payload / name).read_text() + page + document


def test_a_tracking_server_is_linked_to_without_its_password_and_changes_no_digest(
    store: Store, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    judgment = judge(store, made, "DPR")
    first = report(store, {"DPR on lab": judgment})
    monkeypatch.setattr(store, "where", "https://me:***@mlflow.example/")
    again = report(store, {"DPR on lab": judgment}, not_before=datetime.now(UTC))
    page = (store.fetch(again.id).path.parent / BESIDE / PAGE).read_text()
    assert f"/runs/{judgment}" in page
    assert 'href="https://mlflow.example/#/experiments/' in page
    assert "me:***" not in page
    assert store.record(first.id).digest == store.record(again.id).digest


def test_the_same_answers_are_one_baseline_whoever_made_them(store: Store, made: Any) -> None:
    """Two machines with one MLflow server may each make what both need."""

    def baseline(**changes: Any) -> str:
        record = store.record(made.id("answer SFT on lab"))
        config = AnswerConfig.model_validate(record.config | changes)
        return run_stage(stage_named("answer"), config, record.inputs, store=store, not_before=datetime.now(UTC)).id

    def against(policy: str, answers: str) -> str:
        config = JudgeConfig(by=ScriptedJudgeConfig(rule="longer"), bootstrap_samples=100)
        sides = {"candidate": made.id(f"answer {policy} on lab"), "baseline": answers}
        return run_stage(stage_named("judge"), config, sides, store=store, not_before=datetime.now(UTC)).id

    ours = judge(store, made, "DPR")
    twin = against("extrapolated", baseline())
    assert store.record(twin).inputs["baseline"] != store.record(ours).inputs["baseline"]
    both = {"DPR on lab": ours, "extrapolated on lab": twin}
    assert report(store, both, not_before=datetime.now(UTC)).status == "ran"
    other = against("extrapolated", baseline(seed=7, temperature=2.0))
    with pytest.raises(UsageError, match="the judgments on lab are against different SFT answers"):
        report(store, {"DPR on lab": ours, "extrapolated on lab": other})


def test_judgments_by_different_judges_are_not_compared(store: Store, made: Any) -> None:
    ids = {
        "DPR on lab": judge(store, made, "DPR"),
        "extrapolated on lab": judge(store, made, "extrapolated", "shorter"),
    }
    folder = store.fetch(report(store, ids).id).path
    assert json.loads((folder / TABLE).read_text())["paired_tests"] == []
    assert "Win rates on lab are by different judges" in (folder / PAGE).read_text()
    assert "scripted, rule longer and scripted, rule shorter" in (folder / DOCUMENT).read_text()
