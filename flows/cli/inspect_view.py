"""Views of artifacts and pipelines: documents for --json, tables and trees for people."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from dpr_core.config.base import Config
from dpr_core.config.pipeline import PipelineConfig
from dpr_core.text import escape_control_lines
from flows.cli.completion import SHORT
from tasks.artifacts.parent_runs import ParentRun
from tasks.artifacts.run_records import Record
from tasks.artifacts.stage_run import SYSTEM
from tasks.artifacts.store import Store
from tasks.artifacts.unregistered import UNKNOWN_TO_MLFLOW
from tasks.registry import STAGES
from tasks.stages import diagnose


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
        "parent": record.parent,
        "results": record.results,
    }


def record_table(records: Sequence[Record], *, chosen: bool = False) -> RenderableType:
    """`chosen`: of all that there are, some were asked for."""
    if not records:
        nothing = "Nothing has been made yet; start with: dpr run demo"
        return Text("Nothing that was made is of this kind; dpr artifacts lists all" if chosen else nothing)
    table = grid("artifact", "stage", "name", "status", "started (UTC)", "seconds", "result")
    for r in records:
        seconds = "" if r.seconds is None else f"{r.seconds:.1f}"
        cells = (r.stage, r.name, status_of(r), f"{r.started:%Y-%m-%d %H:%M:%S}", seconds, result_of(r))
        add_row(table, r.id, *cells)
    return table


def status_of(record: Record) -> str:
    return record.status.lower() if record.finished or record.status != "FINISHED" else "unfinished"


TELLING = (
    "verdict",
    "win_rate",
    "average",
    "accuracy",
    "return",
    "return_mean",
    "loss",
    "rows_kept",
    "kl",
    "kl_to_sft",
    "response_tokens",
)
"""What says most about an artifact, by the last part of the names of its results."""
MOST_TOLD = 2
VERDICTS = ("go", "caution", "stop")
"""The words of `Level` in dpr_core.diagnostics.verdict, which loads torch."""


def result_of(record: Record) -> str:
    """In few words: two measures, or of a report one of each policy; why there is none, where it failed."""
    if not record.finished:
        return record.reason.splitlines()[0][:80] if record.reason else ""
    if record.stage == "diagnose" and "diagnose/verdict" in record.results:
        return f"verdict {VERDICTS[int(record.results['diagnose/verdict'])]}"
    told: list[str] = []
    for measure in TELLING:
        found = {name: value for name, value in record.results.items() if name.rpartition("/")[2] == measure}
        if len(found) > 1 and not told:
            each = ", ".join(f"{name.split('/')[-2]} {value:.4g}" for name, value in found.items())
            return f"{words(measure)}: {each}"
        told += [f"{words(measure)} {value:.4g}" for value in found.values()]
    return ", ".join(told[:MOST_TOLD])


def words(measure: str) -> str:
    return measure.replace("_", " ").replace("kl", "KL").replace("sft", "SFT")


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
        "url": store.run_url(record.id),
        "folder": str(folder) if (folder := store.folder(record.id)) else None,
        "commit": record.commit or None,
        "registered": [each.title for each in store.registered_models.of(record.id)] if record.finished else [],
        **diagnosis,
    }


def artifact_view(
    store: Store, record: Record, document: Mapping[str, Any], everything: bool = False
) -> RenderableType:
    """The artifact's document, with the titles of what it was made from and used by."""
    facts = Table.grid(padding=(0, 2))
    for name in (
        "id",
        "stage",
        "name",
        "status",
        "reason",
        "key",
        "digest",
        "started",
        "seconds",
        "commit",
        "folder",
        "url",
    ):
        if document.get(name) not in (None, ""):
            add_row(facts, name, str(document[name]))
    for title in document["registered"]:
        add_row(facts, "registered", title)
    records = {each.id: each for each in store.records()}
    parts: list[RenderableType] = [facts, _made_from(store, records, record), _used_by(store, records, document)]
    if "diagnosis" in document:
        parts.append(diagnosis_tree(document["diagnosis"]))
    model = STAGES[record.stage].config if record.stage in STAGES else None
    parts.append(_settings("settings", record.config, None if everything else model))
    metrics = Tree("metrics")
    for name, value in sorted(document["metrics"].items()):
        if not name.startswith(f"{SYSTEM}/"):
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


def _settings(title: str, stored: Mapping[str, Any], model: type[Config] | None) -> Tree:
    """With a model without what is as by default; settings of another version are shown whole."""
    try:
        shown = (
            dict(stored)
            if model is None
            else _changed(config := model.model_validate(stored, strict=False), config.model_dump(mode="json"))
        )
    except ValidationError:
        shown = dict(stored)
    tree = Tree(title if model is None else f"{title} (--all shows those that are as by default, too)")
    _grow(tree, shown)
    return tree


def _changed(config: Config, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not as by default, as plain values; sections keep their type."""
    found: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if name not in values or value == field.get_default(call_default_factory=True):
            continue
        if isinstance(value, Config) and isinstance(values[name], dict):
            kind = {"type": value.type} if hasattr(value, "type") else {}
            found[name] = kind | _changed(value, values[name])
        else:
            found[name] = values[name]
    return found


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
        "url": store.run_url(pipeline.id),
        "asked": dict(pipeline.request.content) if pipeline.request else {},
        "stages": [record_document(record) for record in stages],
    }


def pipeline_view(store: Store, pipeline: ParentRun, everything: bool = False) -> RenderableType:
    facts = Table.grid(padding=(0, 2))
    status = pipeline.status.lower()
    for name, value in (("id", pipeline.id), ("pipeline", pipeline.name), ("status", status)):
        add_row(facts, name, value)
    if pipeline.reason:
        add_row(facts, "reason", pipeline.reason)
    add_row(facts, "started", pipeline.started.isoformat())
    add_row(facts, "url", store.run_url(pipeline.id))
    content = dict(pipeline.request.content) if pipeline.request else {}
    recipe = content.pop("config", None)
    request = Tree("asked for")
    _grow(request, content)
    if isinstance(recipe, dict):
        request.add(_settings("config", recipe, None if everything else PipelineConfig))
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
