"""One pipeline run: its parent run in MLflow, and the document that says what came of every stage. Knows no Prefect."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from tasks.artifacts.parent_runs import About
from tasks.artifacts.store import Store
from tasks.graph import Planned
from tasks.run_stage import Outcome
from tasks.stages.experiment import CLAIMS, OBSERVATIONS
from tasks.stages.report import TABLE

Results = Callable[[Store, Sequence[Mapping[str, Any]]], dict[str, Any]]


def report_of(store: Store, stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The report's table where there is one; else what the last stage measured."""
    reports = [entry for entry in stages if entry["stage"] == "report"]
    if reports:
        text = (store.fetch(reports[-1]["id"]).path / TABLE).read_text(encoding="utf-8")
        table: dict[str, Any] = json.loads(text)
        return table
    return dict(stages[-1]["metrics"]) if stages else {}


def tables_of(store: Store, stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What every experiment saw and what it says of the claims, by the names of their nodes."""
    tables: dict[str, Any] = {}
    for entry in stages:
        if entry["stage"] == "experiment":
            folder = store.fetch(entry["id"]).path
            files = {"observations": folder / OBSERVATIONS, "claims": folder / CLAIMS}
            tables[entry["name"]] = {
                what: json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
                for what, file in files.items()
            }
    return tables


@contextmanager
def pipeline_run(store: Store, about: About, results_of: Results = report_of) -> Iterator[dict[str, Any]]:
    """A parent run, new or taken up, and its document to be filled in."""
    with store.pipelines.running(about) as parent:
        document: dict[str, Any] = {"run_id": parent, "stages": [], "results": {}}
        try:
            yield document
            document["results"] = results_of(store, document["stages"])
        except BaseException as error:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            store.pipelines.end(parent, status, document, reason=f"{type(error).__name__}: {error}")
            raise
        failed = document.get("failed", {})
        last = document["stages"][-1]["metrics"] if document["stages"] else {}
        reason = "; ".join(f"{name}: {why}" for name, why in failed.items())
        store.pipelines.end(parent, "FAILED" if failed else "FINISHED", document, last, reason)


def reuse_all(
    store: Store, planned: Sequence[Planned], about: About, results_of: Results = report_of
) -> dict[str, Any]:
    """The document of a run in which there is nothing to do, so that no flow need be started."""
    with pipeline_run(store, about, results_of) as document:
        document["stages"] += [stage_entry(outcome) for outcome in reused(planned).values()]
    return document


def reused(planned: Sequence[Planned]) -> dict[str, Outcome]:
    """What a plan found to be there already, by the names of the stages."""
    return {
        step.name: Outcome(step.stage, step.name, step.id, "reused", 0.0, step.results)
        for step in planned
        if step.id is not None
    }


def stage_entry(outcome: Outcome) -> dict[str, Any]:
    """What a document says of one stage."""
    return {**asdict(outcome), "seconds": round(outcome.seconds, 2)}
