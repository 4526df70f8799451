"""What the command line shows: plans, runs, artifacts. Documents for --json, tables and trees for people."""

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from dpr_core.reporting.report import ReportTable as Results
from dpr_core.reporting.report import Row
from dpr_core.reporting.report import as_terminal as results_table
from dpr_core.text import escape_control_lines
from tasks.artifacts.parent_runs import Pipeline
from tasks.artifacts.run_records import Record
from tasks.artifacts.store import Store
from tasks.graph import Planned
from tasks.stages import diagnose
from tasks.stages.report import BESIDE
from tasks.stages.report import PAGE as REPORT_PAGE
from tasks.stages.reward import CREDIT_PAGE

SHORT = 8
NARROW = 80


def plan_document(planned: Sequence[Planned]) -> dict[str, Any]:
    return {"plan": [{"stage": p.stage, "name": p.name, "status": p.status, "id": p.id, "why": p.why} for p in planned]}


def plan_table(planned: Sequence[Planned]) -> RenderableType:
    runs = sum(p.status == "run" for p in planned)
    return Group(_PlanTable(planned), Text(f"{runs} of {len(planned)} stages would run; nothing was run."))


@dataclass(frozen=True)
class _PlanTable:
    """The plan with its reasons in the last column, or below each stage where the terminal is narrow."""

    planned: Sequence[Planned]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width < NARROW:
            for p in self.planned:
                yield plain(f"{p.name}: {p.status} {(p.id or '')[:SHORT]}".rstrip(), overflow="fold")
                yield Padding(plain(p.why, overflow="fold"), (0, 0, 0, 2))
            return
        table = grid("stage", "would", "artifact", "why")
        for p in self.planned:
            add_row(table, p.name, p.status, (p.id or "")[:SHORT], p.why)
        yield table


def run_summary(store: Store, document: Mapping[str, Any]) -> RenderableType:
    """The results, every stage's artifact, and what to do next."""
    stages = document["stages"]
    table = grid("stage", "artifact", "status", "seconds")
    for entry in stages:
        add_row(table, entry["name"], entry["id"], entry["status"], f"{entry['seconds']:.1f}")
    parts: list[RenderableType] = []
    results = document["results"]
    if "rows" in results:
        rows = tuple(Row(**row) for row in results["rows"])
        parts.append(results_table(Results(results["title"], rows, notes=tuple(results["notes"]))))
    else:
        parts += [plain(f"{name}: {value:.6g}") for name, value in results.items()]
    parts.append(table)
    parts += [_verdict(diagnose.read(store.fetch(e["id"]).path)) for e in stages if e["stage"] == "diagnose"]
    if all(entry["status"] == "reused" for entry in stages):
        parts.append(Text("Nothing had changed: every stage was reused."))
    parts.append(_next_steps(store, stages))
    return Group(*parts)


def _verdict(diagnosis: Mapping[str, Any]) -> Tree:
    """What was said of a reward before it was trained on, the gravest reasons alone."""
    tree = Tree(f"the reward: {diagnosis['verdict']}")
    for reason in diagnosis["reasons"]:
        if reason["level"] == diagnosis["verdict"]:
            tree.add(plain(reason["text"]))
    return tree


def _next_steps(store: Store, stages: Sequence[Mapping[str, Any]]) -> RenderableType:
    ids = {entry["stage"]: entry["id"] for entry in stages}
    dpr = _dpr()
    steps = [("look at the runs in the MLflow UI", f"{dpr} ui")]
    if "report" in ids:
        payload = store.fetch(ids["report"]).path
        # The copy beside the payload links to the artifacts; of a store elsewhere, only the payload is here.
        beside = payload.parent / BESIDE / REPORT_PAGE
        steps.append(("read the report in a browser", str(beside if beside.is_file() else payload / REPORT_PAGE)))
    if "reward" in ids:
        page = store.fetch(ids["reward"]).path / CREDIT_PAGE
        short = ids["reward"][:SHORT]
        steps.append(("see each token's credit in a browser", str(page)))
        steps.append(("score a text of your own", f'{dpr} score {short} --text "PROMPT" "RESPONSE" --html credit.html'))
    if "reinforce" in ids:
        again = f"{dpr} rerun {ids['reinforce'][:SHORT]} --set algorithm.gamma=0.95 --downstream"
        steps.append(("rerun one stage with a change", again))
    return Group(*(Text.assemble(f"To {what}:\n  ", (command, "bold"), no_wrap=True) for what, command in steps))


def _dpr() -> str:
    """How to call this program from the current folder."""
    program = Path(sys.argv[0])
    if program.name != "dpr":
        return "dpr"
    if (found := shutil.which("dpr")) and Path(found).resolve() == program.resolve():
        return "dpr"
    return os.path.relpath(program)


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
    made = record.finished and record.stage == "diagnose"
    diagnosis = {"diagnosis": diagnose.read(store.fetch(record.id).path)} if made else {}
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
    there = {each.id: each for each in store.records()}
    parts: list[RenderableType] = [facts, _made_from(store, there, record), _used_by(store, there, document)]
    if "diagnosis" in document:
        parts.append(_verdict(document["diagnosis"]))
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


def _made_from(store: Store, there: Mapping[str, Record], record: Record) -> Tree:
    tree = Tree("made from")

    def grow(branch: Tree, made: Record) -> None:
        for role, source in sorted(made.inputs.items()):
            parent = there.get(source) or store.record(source)
            grow(branch.add(plain(f"{role}: {parent.title}")), parent)

    grow(tree, record)
    return tree


def _used_by(store: Store, there: Mapping[str, Record], document: Mapping[str, Any]) -> Tree:
    tree = Tree("used by")
    for source in document["used_by"]:
        user = there.get(source) or store.record(source)
        tree.add(plain(f"{user.title}, {user.status.lower()}"))
    return tree


def _grow(tree: Tree, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _grow(tree.add(plain(name)), value)
        else:
            tree.add(plain(f"{name}: {json.dumps(value, ensure_ascii=False)}"))


def pipeline_document(store: Store, pipeline: Pipeline) -> dict[str, Any]:
    """A parent run and the stages that were made for it, newest first."""
    stages = [store.seen(record) for record in store.records() if record.parent == pipeline.id]
    return {
        "id": pipeline.id,
        "pipeline": pipeline.name,
        "status": pipeline.status,
        "reason": pipeline.reason,
        "started": pipeline.started.isoformat(),
        "asked": dict(pipeline.request.what) if pipeline.request else {},
        "stages": [record_document(record) for record in stages],
    }


def pipeline_view(store: Store, pipeline: Pipeline) -> RenderableType:
    facts = Table.grid(padding=(0, 2))
    status = pipeline.status.lower()
    for name, value in (("id", pipeline.id), ("pipeline", pipeline.name), ("status", status)):
        add_row(facts, name, value)
    if pipeline.reason:
        add_row(facts, "reason", pipeline.reason)
    add_row(facts, "started", pipeline.started.isoformat())
    asked = Tree("asked for")
    _grow(asked, pipeline.request.what if pipeline.request else {})
    stages = [store.seen(record) for record in store.records() if record.parent == pipeline.id]
    hint = [Text(f"Go on with: dpr resume {pipeline.id[:SHORT]}")] if pipeline.may_go_on else []
    return Group(facts, asked, Text("made for it"), record_table(stages), *hint)


Checked = Sequence[tuple[Record, list[str]]]


def verification_document(checked: Checked) -> list[dict[str, Any]]:
    return [{"id": r.id, "stage": r.stage, "sound": not problems, "problems": problems} for r, problems in checked]


def verification_table(checked: Checked) -> RenderableType:
    table = grid("artifact", "stage", "result")
    for record, problems in checked:
        add_row(table, record.id, record.name, "; ".join(problems) or "sound")
    damaged = sum(bool(problems) for _, problems in checked)
    return Group(table, Text(f"{len(checked)} checked, {damaged} damaged."))


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
