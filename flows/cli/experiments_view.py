"""Views of sweeps and reproductions: what would run, the results, the verdicts on claims."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from dpr_core.config.placing import HERE
from dpr_core.experiments.effect_claims import ClaimVerdict
from dpr_core.experiments.exhibits import exhibit_named
from dpr_core.experiments.observations import Observation
from dpr_core.experiments.results import as_terminal, summary, table
from dpr_core.reporting.tables import Table
from flows.cli.run_view import plan_document
from flows.merging import EXPERIMENT, MergedStudies
from tasks.artifacts.store import Store
from tasks.graph import Planned


def sweep_plan_document(studies: MergedStudies, planned: Sequence[Planned]) -> dict[str, Any]:
    """The points, how many stages they come to, and every stage."""
    to_run = sum(step.status == "run" for step in planned)
    counts = {
        "unshared": studies.graph.unshared + len(studies.studies),
        "shared": len(planned),
        "reuse": len(planned) - to_run,
        "run": to_run,
    }
    return {"points": list(studies.reports), "stages": counts, **plan_document(planned)}


def sweep_plan_table(studies: MergedStudies, planned: Sequence[Planned], places: Mapping[str, str]) -> RenderableType:
    """One row for each kind of stage."""
    points = {node.name: len(users) for node, users in zip(studies.graph.nodes, studies.graph.points_of, strict=True)}
    rows: dict[str, list[int]] = {}
    for step in planned:
        row = rows.setdefault(step.stage, [0, 0, 0, 0])
        row[0] += points.get(step.name, 1)
        row[1] += 1
        row[2 if step.status == "reuse" else 3] += 1
    headings = ("stage", "if nothing were shared", "shared", "there already", "would run")
    where = {step.stage: places[step.name] for step in planned if step.name in places}
    if where:
        headings = (*headings, "where")
    stages = Table(
        headings,
        [[stage, *map(str, row), *([where.get(stage, HERE)] if where else [])] for stage, row in rows.items()],
    )
    shared, reused, to_run = (sum(row[column] for row in rows.values()) for column in (1, 2, 3))
    summary_line = (
        f"{len(studies.reports)} points: {to_run} of {shared} stages would run, {reused} are there; nothing was run."
    )
    return Group(stages.as_terminal("Plan"), Text(summary_line))


def sweep_summary(store: Store, document: Mapping[str, Any]) -> RenderableType:
    """The table of every experiment, and where it is kept."""
    parts: list[RenderableType] = []
    for entry in document["stages"]:
        if entry["stage"] == EXPERIMENT:
            artifact = store.fetch(entry["id"])
            observations = [Observation(**each) for each in document["results"][entry["name"]]["observations"]]
            parts.append(
                table(exhibit_named(artifact.config["exhibit"]), observations).as_terminal(artifact.config["title"])
            )
            parts.append(Text(f"Table and plots: {artifact.path}\nArtifact: {entry['id']}"))
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
