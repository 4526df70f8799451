"""Runs that stand for policies in MLflow's table: one row a policy under its pipeline, one unit a metric."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tasks.artifacts.parent_runs import PolicyRow
from tasks.artifacts.store import Artifact, Store
from tasks.stages.judgments import BASELINE
from tasks.stages.report import TABLE

EVEN = 0.5
"""What a policy wins against its own answers, each pair in both orders."""


def rows_of(store: Store, stages: Sequence[Mapping[str, Any]], changed: str = "") -> list[PolicyRow]:
    """The rows of all reports among the stages of a pipeline; what several of them share is one row.

    `changed` is what a rerun changed, and part of the name of every policy whose answers it made.
    """
    names = {entry["id"]: entry["name"] for entry in stages}
    rows: dict[frozenset[str], PolicyRow] = {}
    for entry in stages:
        if entry["stage"] == "report":
            for row in _rows(store, store.fetch(entry["id"]), names, changed):
                rows.setdefault(frozenset(row.made_of.values()) - {entry["id"]}, row)
    return list(rows.values())


def _rows(store: Store, report: Artifact, names: Mapping[str, str], changed: str) -> Iterator[PolicyRow]:
    table = json.loads((report.path / TABLE).read_text(encoding="utf-8"))["rows"]
    made_for = _made_for(store, report)
    for policy in dict.fromkeys(row["policy"] for row in table):
        of_policy = {row["benchmark"]: row for row in table if row["policy"] == policy}
        metrics: dict[str, float] = {}
        made_of = {"report": report.id}
        labels: dict[str, None] = {}
        for benchmark, row in of_policy.items():
            made = made_for[policy, benchmark]
            made_of |= {f"{stage} on {benchmark}": run_id for stage, run_id in made.items()}
            for name, value in _measured(row).items():
                metrics.setdefault(name, value)
                if len(of_policy) > 1:
                    metrics[f"{name}/{benchmark}"] = value
            stage, run_id = list(made.items())[-1]
            _, _, point = (names.get(run_id) or store.published(run_id).name).partition(
                f"{stage} {policy} on {benchmark}"
            )
            labels[point.strip(" ()")] = None
            labels[changed if made["answer"] in names else ""] = None
        answers = store.published(made_for[policy, next(iter(of_policy))]["answer"])
        source = store.published(answers.inputs["policy"])
        settings = {source.stage: source.config, "policy": answers.config["policy"]}
        yield PolicyRow(policy, " ".join(filter(None, labels)), metrics, {source.stage: source.id, **made_of}, settings)


def _made_for(store: Store, report: Artifact) -> dict[tuple[str, str], dict[str, str]]:
    """The answers, then what judged them, by policy and benchmark."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for role, run_id in report.inputs.items():
        policy, _, benchmark = role.partition(" on ")
        record = store.published(run_id)
        if record.stage == "judge":
            found[BASELINE, benchmark] = {"answer": record.inputs["baseline"]}
            found[policy, benchmark] = {"answer": record.inputs["candidate"], "judge": run_id}
        elif record.stage == "answer":
            found[policy, benchmark] = {"answer": run_id}
    return found


def _measured(row: Mapping[str, Any]) -> dict[str, float]:
    """Shares between 0 and 1, nats an answer, mean tokens of an answer; what was not measured is left out."""
    win_rate = None if row["win_rate"] is None else row["win_rate"] / 100
    gold: Mapping[str, Any] = row.get("gold") or {}
    # What is right is the accuracy.
    values = {
        "win_rate": EVEN if row["is_baseline"] and row.get("is_judged", True) else win_rate,
        "accuracy": row["accuracy"],
        "kl": row["kl_to_sft"],
        "tokens": row["response_tokens"],
        "repetition": row.get("repetition"),
        "refusals": row.get("refusals"),
        **{name: each["value"] for name, each in gold.items() if each["is_share"] and name != "right"},
    }
    return {name: value for name, value in values.items() if value is not None}
