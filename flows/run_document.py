"""The document of a pipeline run, kept with its parent run in MLflow: the outcome of every stage. Knows no Prefect."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from dpr_core.errors import DensePathError
from tasks.artifacts.listed import only_for_people
from tasks.artifacts.parent_runs import PipelineInfo
from tasks.artifacts.store import Store
from tasks.graph import Planned
from tasks.policy_rows import rows_of
from tasks.run_stage import Outcome
from tasks.stages.experiment import CLAIMS, OBSERVATIONS
from tasks.stages.report import TABLE

Results = Callable[[Store, Sequence[Mapping[str, Any]]], dict[str, Any]]


class IncompleteError(DensePathError):
    """Some points failed. The document has the outcome of all."""

    def __init__(self, document: dict[str, Any]) -> None:
        failed = document["failed"]
        lines = [f"  {name}: {why}" for name, why in failed.items()]
        kept = "everything else is made and kept; the same command goes on from there"
        super().__init__("\n".join([f"{len(failed)} failed; {kept}", *lines]))
        self.document = document


def report_of(store: Store, stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The report's table where there is one; else what the last stage measured."""
    reports = [entry for entry in stages if entry["stage"] == "report"]
    if reports:
        text = (store.fetch(reports[-1]["id"]).path / TABLE).read_text(encoding="utf-8")
        table: dict[str, Any] = json.loads(text)
        return table
    return dict(stages[-1]["metrics"]) if stages else {}


def tables_of(store: Store, stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The observations of every experiment and its verdicts on the claims, by the names of their nodes."""
    tables: dict[str, Any] = {}
    for entry in stages:
        if entry["stage"] == "experiment":
            folder = store.fetch(entry["id"]).path
            files = {"observations": folder / OBSERVATIONS, "claims": folder / CLAIMS}
            tables[entry["name"]] = {
                name: json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
                for name, file in files.items()
            }
    return tables


@contextmanager
def pipeline_run(store: Store, info: PipelineInfo, results_of: Results = report_of) -> Iterator[dict[str, Any]]:
    """A parent run, new or resumed, and its document to be filled in."""
    with store.parent_runs.running(info) as parent:
        document: dict[str, Any] = {"run_id": parent, "stages": [], "results": {}}
        try:
            yield document
            document["results"] = results_of(store, document["stages"])
            with only_for_people("policies"):
                store.parent_runs.show_policies(parent, rows_of(store, document["stages"], info.label))
        except BaseException as error:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            store.parent_runs.end(parent, status, document, reason=f"{type(error).__name__}: {error}")
            raise
        failed = document.get("failed", {})
        reason = "; ".join(f"{name}: {why}" for name, why in failed.items())
        store.parent_runs.end(parent, "FAILED" if failed else "FINISHED", document, reason)


def reuse_all(
    store: Store, planned: Sequence[Planned], info: PipelineInfo, results_of: Results = report_of
) -> dict[str, Any]:
    """The document of a run in which every stage is reused, so that no flow is started."""
    with pipeline_run(store, info, results_of) as document:
        document["stages"] += [stage_entry(outcome) for outcome in reused(planned).values()]
    return document


def reused(planned: Sequence[Planned]) -> dict[str, Outcome]:
    """The artifacts that a plan found, by the names of the stages."""
    return {
        step.name: Outcome(step.stage, step.name, step.id, "reused", 0.0, step.results, step.why)
        for step in planned
        if step.id is not None
    }


def stage_entry(outcome: Outcome) -> dict[str, Any]:
    """The entry of one stage in a document."""
    return {**asdict(outcome), "seconds": round(outcome.seconds, 2)}
