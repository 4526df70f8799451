"""Two artifacts or two pipelines beside each other: the settings, inputs and results that differ."""

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from dpr_core.errors import UsageError
from flows.cli.completion import SHORT
from flows.cli.inspect_view import add_row, grid
from tasks.artifacts.parent_runs import ParentRun
from tasks.artifacts.run_records import Record, flatten
from tasks.artifacts.store import Store

NONE = "-"


def difference(store: Store, first: str, second: str) -> dict[str, Any]:
    """What differs, as pairs of the first's and the second's; None where one has nothing of the kind."""
    pipelines = [store.parent_runs.find(reference) for reference in (first, second)]
    match pipelines:
        case [ParentRun() as a, ParentRun() as b]:
            documents = [_document(store, each) for each in (a, b)]
            made = [{entry["name"]: entry["id"] for entry in document["stages"]} for document in documents]
            sides = [_settings(each) for each in (a, b)], made, [_results(document) for document in documents]
            named = [{"id": each.id, "pipeline": each.name} for each in (a, b)]
        case [None, None]:
            x, y = records = [store.with_live_status(store.record(reference)) for reference in (first, second)]
            if x.stage != y.stage:
                raise UsageError(f"{x.title} is of stage {x.stage} and {y.title} of {y.stage}; give two of one stage")
            digests = store.digests({source for record in records for source in record.inputs.values()})
            sides = (
                [record.config for record in records],
                [_inputs(r, digests) for r in records],
                [store.metrics(record.id) for record in records],
            )
            named = [{"id": each.id, "stage": each.stage, "name": each.name} for each in records]
        case _:
            raise UsageError(f"{first} and {second}: one is a pipeline's run and one an artifact; give two of a kind")
    settings, inputs, results = sides
    return {
        "artifacts": named,
        "settings": _pairs(*(dict(flatten(side)) for side in settings)),
        "inputs": _pairs(*inputs),
        "results": _pairs(*results),
    }


def _pairs(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[Any]]:
    names = dict.fromkeys([*first, *second])
    return {name: [first.get(name), second.get(name)] for name in names if first.get(name) != second.get(name)}


def _inputs(record: Record, digests: Mapping[str, str | None]) -> dict[str, str]:
    """The same bytes under another ID are the same input: known by the first that has them."""
    same: dict[str | None, str] = {}
    for source in sorted(digests):
        same.setdefault(digests[source] or source, source)
    return {role: same.get(digests.get(source) or source, source) for role, source in record.inputs.items()}


def _document(store: Store, pipeline: ParentRun) -> dict[str, Any]:
    if pipeline.status in ("RUNNING", "INTERRUPTED"):
        raise UsageError(f"the pipeline {pipeline.title} has not ended, so it has no results yet")
    return store.parent_runs.document(pipeline.id)


def _settings(pipeline: ParentRun) -> dict[str, Any]:
    return dict(pipeline.request.content) if pipeline.request else {}


def _results(document: Mapping[str, Any]) -> dict[str, float]:
    """Of every stage, by its name in the pipeline."""
    return {
        f"{entry['name']}: {name}": value for entry in document["stages"] for name, value in entry["metrics"].items()
    }


def diff_view(document: Mapping[str, Any]) -> RenderableType:
    first, second = (entry["id"][:SHORT] for entry in document["artifacts"])
    parts: list[RenderableType] = []
    for title in ("settings", "inputs", "results"):
        rows = document[title]
        if not rows:
            continue
        numbers = [_change(*pair) for pair in rows.values()]
        table = grid(title, first, second, *(["change"] if any(numbers) else []))
        for (name, pair), change in zip(rows.items(), numbers, strict=True):
            add_row(table, name, *map(_text, pair), *([change] if any(numbers) else []))
        parts += [table, Text("")]
    return Group(*parts[:-1]) if parts else Text(f"{first} and {second} do not differ.")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return NONE if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _change(first: Any, second: Any) -> str:
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in (first, second))
    return f"{second - first:+.4g}" if numbers else ""
