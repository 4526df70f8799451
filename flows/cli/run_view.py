"""Views of runs: what would run and why, the results, and the next steps."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.text import Text

from dpr_core.config.placing import HERE
from dpr_core.reporting.report import ReportTable
from dpr_core.reporting.report import as_terminal as results_table
from flows.cli.completion import SHORT
from flows.cli.inspect_view import add_row, diagnosis_tree, grid, plain
from flows.pages import credit_page, report_page
from tasks.artifacts.store import Store
from tasks.graph import Planned
from tasks.stages import diagnose

NARROW = 80


def plan_document(planned: Sequence[Planned]) -> dict[str, Any]:
    return {"plan": [{"stage": p.stage, "name": p.name, "status": p.status, "id": p.id, "why": p.why} for p in planned]}


def plan_table(planned: Sequence[Planned], places: Mapping[str, str] = MappingProxyType({})) -> RenderableType:
    """With where each stage would be done, if any is placed on a work pool."""
    runs = sum(p.status == "run" for p in planned)
    return Group(_PlanTable(planned, places), Text(f"{runs} of {len(planned)} stages would run; nothing was run."))


@dataclass(frozen=True)
class _PlanTable:
    """The plan with its reasons in the last column, or below each stage where the terminal is narrow."""

    planned: Sequence[Planned]
    places: Mapping[str, str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if options.max_width < NARROW:
            for p in self.planned:
                where = f" on {self.places[p.name]}" if p.name in self.places else ""
                yield plain(f"{p.name}: {p.status}{where} {(p.id or '')[:SHORT]}".rstrip(), overflow="fold")
                yield Padding(plain(p.why, overflow="fold"), (0, 0, 0, 2))
            return
        table = grid("stage", "would", *(["where"] if self.places else []), "artifact", "why")
        for p in self.planned:
            where = [self.places.get(p.name, HERE if p.status == "run" else "")] if self.places else []
            add_row(table, p.name, p.status, *where, (p.id or "")[:SHORT], p.why)
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
        parts.append(results_table(ReportTable.of(results)))
    else:
        parts += [plain(f"{name}: {value:.6g}") for name, value in results.items()]
    parts.append(table)
    parts += [diagnosis_tree(diagnose.read(store.fetch(e["id"]).path)) for e in stages if e["stage"] == "diagnose"]
    if all(entry["status"] == "reused" for entry in stages):
        parts.append(Text("Nothing had changed: every stage was reused."))
    parts.append(_next_steps(store, stages))
    return Group(*parts)


def _next_steps(store: Store, stages: Sequence[Mapping[str, Any]]) -> RenderableType:
    ids = {entry["stage"]: entry["id"] for entry in stages}
    dpr = _dpr()
    steps = [("look at the runs in the MLflow UI", f"{dpr} ui")]
    if "report" in ids:
        steps.append(("read the report in a browser", str(report_page(store, ids["report"]))))
    if "reward" in ids:
        short = ids["reward"][:SHORT]
        steps.append(("see each token's credit in a browser", str(credit_page(store, ids["reward"]))))
        steps.append(("score a text of your own", f'{dpr} score {short} --text "PROMPT" "RESPONSE" --html credit.html'))
    elif "sft" in ids:
        steps.append(("train on from here", f"{dpr} run RECIPE --sft {ids['sft'][:SHORT]}"))
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
