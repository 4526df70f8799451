"""What the command line shows of many pipelines: what would run, what came out, the verdicts."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from dpr_core.experiments.effect_claims import ClaimVerdict
from dpr_core.experiments.exhibits import exhibit_named
from dpr_core.experiments.observations import Observation
from dpr_core.experiments.results import as_terminal, summary, table
from dpr_core.reporting.tables import Table
from flows.cli.inspect_view import plan_document
from flows.merging import EXPERIMENT, Experiment
from tasks.artifacts.store import Store
from tasks.graph import Planned


def experiment_plan_document(asked: Experiment, planned: Sequence[Planned]) -> dict[str, Any]:
    """The points, how many stages they come to, and every stage."""
    to_run = sum(step.status == "run" for step in planned)
    counts = {
        "unshared": asked.merged.unshared + len(asked.studies),
        "shared": len(planned),
        "reuse": len(planned) - to_run,
        "run": to_run,
    }
    return {"points": list(asked.reports), "stages": counts, **plan_document(planned)}


def experiment_plan_table(asked: Experiment, planned: Sequence[Planned]) -> RenderableType:
    """One row for each kind of stage."""
    wanted = {node.name: len(users) for node, users in zip(asked.merged.nodes, asked.merged.points_of, strict=True)}
    rows: dict[str, list[int]] = {}
    for step in planned:
        row = rows.setdefault(step.stage, [0, 0, 0, 0])
        row[0] += wanted.get(step.name, 1)
        row[1] += 1
        row[2 if step.status == "reuse" else 3] += 1
    headings = ("stage", "if nothing were shared", "shared", "there already", "would run")
    stages = Table(headings, [[stage, *map(str, row)] for stage, row in rows.items()])
    shared, there, to_run = (sum(row[column] for row in rows.values()) for column in (1, 2, 3))
    told = f"{len(asked.reports)} points: {to_run} of {shared} stages would run, {there} are there; nothing was run."
    return Group(stages.as_terminal("Plan"), Text(told))


def sweep_summary(store: Store, document: Mapping[str, Any]) -> RenderableType:
    """The table of every experiment, and where it is kept."""
    parts: list[RenderableType] = []
    for entry in document["stages"]:
        if entry["stage"] == EXPERIMENT:
            config = store.record(entry["id"]).config
            seen = [Observation(**each) for each in document["results"][entry["name"]]["observations"]]
            parts.append(table(exhibit_named(config["exhibit"]), seen).as_terminal(config["title"]))
            parts.append(Text(f"Table and plots: {store.fetch(entry['id']).path}\nArtifact: {entry['id']}"))
    if all(entry["status"] == "reused" for entry in document["stages"]):
        parts.append(Text("Nothing had changed: every stage was reused."))
    return Group(*parts)


def verdicts(document: Mapping[str, Any]) -> RenderableType:
    """One row for each claim, and where the whole is written down."""
    judged = [ClaimVerdict.of(claim) for claim in document["claims"]]
    identities = document.get("identities", [])
    parts: list[RenderableType] = [as_terminal("Claims", judged), Text(summary(judged))] if judged else []
    if identities:
        held = sum(identity["holds"] for identity in identities)
        parts.append(Text(f"Of {len(identities)} identities of the theory, {held} hold."))
    return Group(*parts, Text(f"Results: {document['document']}"))
