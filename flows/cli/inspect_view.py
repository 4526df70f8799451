"""Views of artifacts and pipelines: documents for --json, tables and trees for people."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from dpr_core.text import escape_control_lines
from tasks.artifacts.parent_runs import ParentRun
from tasks.artifacts.run_records import Record
from tasks.artifacts.store import Store
from tasks.artifacts.unregistered import UNKNOWN_TO_MLFLOW
from tasks.stages import diagnose

SHORT = 8


def record_document(record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "stage": record.stage,
        "name": record.name,
        "status": record.status,
        "finished": record.finished,
        "key": record.key,
        "digest": record.digest,
        "inputs": record.inputs,
        "started": record.started.isoformat(),
        "seconds": record.seconds,
    }


def record_table(records: Sequence[Record]) -> RenderableType:
    if not records:
        return Text("Nothing has been made yet; start with: dpr run demo")
    table = grid("artifact", "stage", "name", "status", "started (UTC)", "seconds")
    for r in records:
        seconds = "" if r.seconds is None else f"{r.seconds:.1f}"
        status = r.status.lower() if r.finished or r.status != "FINISHED" else "unfinished"
        add_row(table, r.id, r.stage, r.name, status, f"{r.started:%Y-%m-%d %H:%M:%S}", seconds)
    return table


def artifact_document(store: Store, record: Record) -> dict[str, Any]:
    """Everything about one artifact; of a diagnosis, what it says too."""
    is_diagnosis = record.finished and record.stage == "diagnose"
    diagnosis = {"diagnosis": diagnose.read(store.fetch(record.id).path)} if is_diagnosis else {}
    return {
        **record_document(record),
        "config": record.config,
        "metrics": store.metrics(record.id),
        "files": [dict(entry) for entry in store.manifest(record.id).files] if record.finished else [],
        "used_by": [user.id for user in store.users(record.id)],
        "reason": record.reason,
        **diagnosis,
    }


def artifact_view(store: Store, record: Record, document: Mapping[str, Any]) -> RenderableType:
    """The artifact's document, with the titles of what it was made from and used by."""
    facts = Table.grid(padding=(0, 2))
    for name in ("id", "stage", "name", "status", "reason", "key", "digest", "started", "seconds"):
        if document[name] not in (None, ""):
            add_row(facts, name, str(document[name]))
    records = {each.id: each for each in store.records()}
    parts: list[RenderableType] = [facts, _made_from(store, records, record), _used_by(store, records, document)]
    if "diagnosis" in document:
        parts.append(diagnosis_tree(document["diagnosis"]))
    settings = Tree("settings")
    _grow(settings, record.config)
    parts.append(settings)
    metrics = Tree("metrics")
    for name, value in sorted(document["metrics"].items()):
        metrics.add(plain(f"{name}: {value:.6g}"))
    files = Tree("files")
    for entry in document["files"]:
        files.add(plain(f"{entry['path']}  {entry['size']:,} bytes  sha256 {entry['sha256'][:12]}"))
    return Group(*parts, metrics, files)


def _made_from(store: Store, records: Mapping[str, Record], record: Record) -> Tree:
    tree = Tree("made from")

    def grow(branch: Tree, child: Record) -> None:
        for role, source in sorted(child.inputs.items()):
            parent = records.get(source) or store.record(source)
            grow(branch.add(plain(f"{role}: {parent.title}")), parent)

    grow(tree, record)
    return tree


def _used_by(store: Store, records: Mapping[str, Record], document: Mapping[str, Any]) -> Tree:
    tree = Tree("used by")
    for source in document["used_by"]:
        user = records.get(source) or store.record(source)
        tree.add(plain(f"{user.title}, {user.status.lower()}"))
    return tree


def _grow(tree: Tree, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _grow(tree.add(plain(name)), value)
        else:
            tree.add(plain(f"{name}: {json.dumps(value, ensure_ascii=False)}"))


def diagnosis_tree(diagnosis: Mapping[str, Any]) -> Tree:
    """The verdict on a reward before it is trained on, with the gravest reasons alone."""
    tree = Tree(f"the reward: {diagnosis['verdict']}")
    for reason in diagnosis["reasons"]:
        if reason["level"] == diagnosis["verdict"]:
            tree.add(plain(reason["text"]))
    return tree


def pipeline_document(store: Store, pipeline: ParentRun) -> dict[str, Any]:
    """A parent run and the stages that were made for it, newest first."""
    stages = [store.with_live_status(record) for record in store.records() if record.parent == pipeline.id]
    return {
        "id": pipeline.id,
        "pipeline": pipeline.name,
        "status": pipeline.status,
        "reason": pipeline.reason,
        "started": pipeline.started.isoformat(),
        "asked": dict(pipeline.request.content) if pipeline.request else {},
        "stages": [record_document(record) for record in stages],
    }


def pipeline_view(store: Store, pipeline: ParentRun) -> RenderableType:
    facts = Table.grid(padding=(0, 2))
    status = pipeline.status.lower()
    for name, value in (("id", pipeline.id), ("pipeline", pipeline.name), ("status", status)):
        add_row(facts, name, value)
    if pipeline.reason:
        add_row(facts, "reason", pipeline.reason)
    add_row(facts, "started", pipeline.started.isoformat())
    request = Tree("asked for")
    _grow(request, pipeline.request.content if pipeline.request else {})
    stages = [store.with_live_status(record) for record in store.records() if record.parent == pipeline.id]
    hint = [Text(f"Go on with: dpr resume {pipeline.id[:SHORT]}")] if pipeline.is_resumable else []
    return Group(facts, request, Text("made for it"), record_table(stages), *hint)


class Checked(NamedTuple):
    """An artifact with what is wrong with it."""

    id: str
    stage: str
    name: str
    problems: list[str]
    registered: bool = False
    """Whether it was taken back into the database."""


def verification_document(checked: Sequence[Checked]) -> list[dict[str, Any]]:
    return [
        {"id": each.id, "stage": each.stage, "sound": not each.problems, "problems": each.problems}
        | ({"registered": True} if each.registered else {})
        for each in checked
    ]


def verification_table(checked: Sequence[Checked]) -> RenderableType:
    table = grid("artifact", "stage", "result")
    for each in checked:
        fine = "sound, and taken back into the database" if each.registered else "sound"
        add_row(table, each.id, each.name, "; ".join(each.problems) or fine)
    unknown = sum(UNKNOWN_TO_MLFLOW in each.problems for each in checked)
    damaged = sum(any(problem != UNKNOWN_TO_MLFLOW for problem in each.problems) for each in checked)
    also = f", {unknown} not in the database" if unknown else ""
    return Group(table, Text(f"{len(checked)} checked, {damaged} damaged{also}."))


def grid(*columns: str) -> Table:
    """A table without lines."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def add_row(table: Table, *cells: str) -> None:
    table.add_row(*map(plain, cells))


def plain(text: str, **options: Any) -> Text:
    """Neither markup nor a sign that steers the terminal, in a name or in what an error quotes."""
    return Text(escape_control_lines(text), **options)
