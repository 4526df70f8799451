"""Rows of policies: one unit a metric, each benchmark's own where there are several, names by what sets them apart."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.policy_rows import rows_of


def record(stage: str, name: str, inputs: dict[str, str], **config: Any) -> Any:
    return SimpleNamespace(id=f"id of {name}", stage=stage, name=name, inputs=inputs, config=config)


def reported(policy: str, benchmark: str, win_rate: float | None, accuracy: float | None = None) -> dict[str, Any]:
    return {
        "policy": policy,
        "benchmark": benchmark,
        "win_rate": win_rate,
        "is_baseline": policy == "SFT",
        "accuracy": accuracy,
        "kl_to_sft": None,
        "response_tokens": 20.0,
    }


@pytest.fixture
def store(tmp_path: Path) -> Any:
    """A report of DPR and SFT on two benchmarks, only the second of which has results."""
    table = [
        reported(p, b, w, a) for p, w in (("SFT", None), ("DPR", 60.0)) for b, a in (("arena", None), ("lab", 0.25))
    ]
    (tmp_path / "table.json").write_text(json.dumps({"rows": table}))
    records = [record("sft", "sft", {}, seed=0), record("reinforce", "reinforce", {}, seed=1)]
    for benchmark in ("arena", "lab"):
        for policy, source in (("SFT", "sft"), ("DPR", "reinforce")):
            name = f"answer {policy} on {benchmark}"
            records.append(record("answer", name, {"policy": f"id of {source}"}, policy={"type": "as_trained"}))
        answers = {"candidate": f"id of answer DPR on {benchmark}", "baseline": f"id of answer SFT on {benchmark}"}
        records.append(record("judge", f"judge DPR on {benchmark}", answers))
    inputs = {f"DPR on {benchmark}": f"id of judge DPR on {benchmark}" for benchmark in ("arena", "lab")}
    report = SimpleNamespace(id="id of report", path=tmp_path, inputs=inputs)
    return SimpleNamespace(fetch=lambda run_id: report, published={each.id: each for each in records}.__getitem__)


def entry(name: str, stage: str, run_id: str = "") -> dict[str, str]:
    return {"name": name, "stage": stage, "id": run_id or f"id of {name}"}


REPORT = entry("report", "report")


def test_with_several_benchmarks_a_metric_is_the_first_that_has_it_and_each_has_its_own(store: Any) -> None:
    rows = {row.name: row for row in rows_of(store, [REPORT])}
    assert rows["DPR"].metrics == {
        "win_rate": 0.6,
        "win_rate/arena": 0.6,
        "win_rate/lab": 0.6,
        "accuracy": 0.25,
        "accuracy/lab": 0.25,
        "tokens": 20.0,
        "tokens/arena": 20.0,
        "tokens/lab": 20.0,
    }
    assert rows["SFT"].metrics["win_rate"] == 0.5
    assert rows["DPR"].settings == {"reinforce": {"seed": 1}, "policy": {"type": "as_trained"}}
    assert rows["SFT"].made_of == {
        "sft": "id of sft",
        "report": "id of report",
        "answer on arena": "id of answer SFT on arena",
        "answer on lab": "id of answer SFT on lab",
    }


def test_what_a_program_measured_is_a_metric_too(store: Any) -> None:
    table = store.fetch("any").path / "table.json"
    rows = json.loads(table.read_text())["rows"]
    gold = {"right": 0.25, "equation_right": 0.75}
    for row in rows:
        if row["benchmark"] == "lab":
            measures = {name: {"value": value, "is_share": True} for name, value in gold.items()}
            row |= {"repetition": 0.125, "refusals": 0.0, "gold": measures}
    table.write_text(json.dumps({"rows": rows}))
    found = {row.name: row.metrics for row in rows_of(store, [REPORT])}["DPR"]
    assert (found["repetition"], found["refusals/lab"], found["equation_right/lab"]) == (0.125, 0.0, 0.75)
    assert not {"right", "repetition/arena"} & found.keys()


def test_only_what_answered_anew_is_named_by_what_a_rerun_changed(store: Any) -> None:
    stages = [entry(f"answer DPR on {benchmark}", "answer") for benchmark in ("arena", "lab")]
    assert [row.name for row in rows_of(store, [*stages, REPORT], "gamma=0.9")] == ["SFT", "DPR gamma=0.9"]


def test_points_of_a_sweep_are_told_apart_and_what_they_share_is_one_row(store: Any) -> None:
    stages = [
        entry(f"judge DPR on {benchmark} (gamma=0.9)", "judge", f"id of judge DPR on {benchmark}")
        for benchmark in ("arena", "lab")
    ]
    assert [row.name for row in rows_of(store, [*stages, REPORT, REPORT])] == ["SFT", "DPR gamma=0.9"]
