"""One pipeline run: its parent run in MLflow, and the document that says what came of every stage. Knows no Prefect."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from tasks.graph import Planned
from tasks.report import TABLE
from tasks.stage import Outcome
from tasks.tracking import Store


@contextmanager
def pipeline_run(store: Store, name: str, description: str, config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A parent run, and its document to be filled in."""
    parent = store.begin_pipeline(name, description, config)
    document: dict[str, Any] = {"run_id": parent, "stages": [], "results": {}}
    try:
        yield document
        document["results"] = _results(store, document["stages"])
    except BaseException as error:
        store.end_pipeline(parent, "FAILED" if isinstance(error, Exception) else "KILLED", document)
        raise
    store.end_pipeline(parent, "FINISHED", document, document["stages"][-1]["metrics"])


def reuse_all(
    store: Store, planned: Sequence[Planned], name: str, description: str, config: Mapping[str, Any]
) -> dict[str, Any]:
    """The document of a run in which there is nothing to do, so that no flow need be started."""
    with pipeline_run(store, name, description, config) as document:
        for step in planned:
            record = store.record(str(step.id))
            outcome = Outcome(step.stage, step.name, record.id, "reused", 0.0, record.results)
            document["stages"].append(stage_entry(outcome))
    return document


def stage_entry(outcome: Outcome) -> dict[str, Any]:
    """What a document says of one stage."""
    return {**asdict(outcome), "seconds": round(outcome.seconds, 2)}


def _results(store: Store, stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The report's table where there is one; else what the last stage measured."""
    reports = [entry for entry in stages if entry["stage"] == "report"]
    if reports:
        text = (store.fetch(reports[-1]["id"]).path / TABLE).read_text(encoding="utf-8")
        table: dict[str, Any] = json.loads(text)
        return table
    return dict(stages[-1]["metrics"]) if stages else {}
