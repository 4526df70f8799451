"""One report of every policy over every benchmark: a page, a Markdown document and the numbers of both."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, cast

from dpr_core.config.base import StageConfig
from dpr_core.config.evaluation import ReportConfig
from dpr_core.experiments.exhibits import TRAINED
from tasks.running.stage import Stage
from tasks.running.workspace import Workspace
from tasks.stages.judgments import BASELINE, Judgments
from tasks.stages.rate import rated_in

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dpr_core.reporting.frontier import Reached
    from dpr_core.reporting.report import ReportTable

TABLE = "table.json"
FRONTIER = "frontier.json"
PAGE = "report.html"
DOCUMENT = "report.md"

BESIDE = "report"
"""The folder beside the payload with the page and the document once more, with links to the artifacts.

IDs and addresses are those of one store. The payload has none, so that the same work gives the same digest anywhere.
"""


def body(config: StageConfig, work: Workspace) -> dict[str, float]:
    """Each input is a judge artifact, whose role, "policy on benchmark", names the row, a rate artifact, or what nobody
    judges: answers that a program checks, and likelihoods."""
    from dpr_core.reporting import capabilities, frontier, report, sections
    from dpr_core.reporting.examples import examples_section

    read = Judgments(work)
    judged = [role for role in work.inputs if work.input(role).stage == "judge"]
    for done, role in enumerate(judged, start=1):
        read.add(role)
        work.advance(done, len(judged), role)
    unjudged = [role for role in work.inputs if work.input(role).stage == "answer"]
    for role in sorted(unjudged, key=lambda role: not role.startswith(f"{BASELINE} on ")):
        read.add_answers(role)
    read.compare_unjudged()
    title = cast(ReportConfig, config).title
    table = report.ReportTable(title, tuple(read.rows.values()), BASELINE, tuple(read.complaints()), read.provenance)
    frontiers = read.frontiers()
    compared, rated = sections.compare_policies(read.judged), rated_in(work)
    parts = [
        frontier.frontier_section(frontiers, TRAINED),
        sections.ratings_section(rated),
        sections.categories_section(read.judged, rated),
        capabilities.capabilities_section(read.differences, BASELINE),
        sections.paired_tests_section(compared),
        sections.lengths_section(read.judged, BASELINE),
        examples_section(read.judged, BASELINE),
    ]
    kept = [part for part in parts if part is not None]
    values = report.as_dict(table) | {
        "paired_tests": [asdict(pair) for pair in compared],
        "ratings": [asdict(each) for each in rated],
        "capabilities": [asdict(each) for each in read.differences],
    }
    if categories := {
        f"{each.policy} on {each.benchmark}": each.by_category for each in read.judged if each.by_category
    }:
        values["win_rates_by_category"] = categories
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (work.output / TABLE).write_text(text, encoding="utf-8")
    curves = json.dumps(frontier.as_dict(frontiers), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (work.output / FRONTIER).write_text(curves, encoding="utf-8")
    address = work.store.run_url if work.store.where.startswith("http") else lambda run_id: None
    linked = [*kept, sections.links_section(read.linked, address)]
    for folder, shown in ((work.output, kept), (work.scratch / BESIDE, linked)):
        folder.mkdir(exist_ok=True)
        (folder / PAGE).write_text(report.as_html(table, shown), encoding="utf-8")
        (folder / DOCUMENT).write_text(report.as_markdown(table, shown), encoding="utf-8")
    for name in (PAGE, DOCUMENT):
        work.file(work.scratch / BESIDE / name, BESIDE)
    _plot(work, table)
    _plot_frontiers(work, frontiers)
    metrics = {
        f"{row.benchmark}/{row.policy}/{name}": float(value)
        for row in table.rows
        for name in (
            *("win_rate", "length_adjusted_rate", "accuracy", "response_tokens", "kl_to_sft"),
            *("repetition", "refusals"),
        )
        if (value := getattr(row, name)) is not None
    }
    return metrics | {
        f"{row.benchmark}/{row.policy}/gold_{name}": measure.value
        for row in table.rows
        for name, measure in (row.gold or {}).items()
    }


def _plot(work: Workspace, table: "ReportTable") -> None:
    from dpr_core.reporting import plots

    bars = [
        (f"{row.policy} ({row.benchmark})", row.win_rate, *row.win_rate_interval)
        for row in table.rows
        if row.win_rate is not None and row.win_rate_interval is not None
    ]
    if bars:
        plots.intervals(work.scratch / "win_rates.png", f"{table.estimand} (%)", bars, even=50)
        work.file(work.scratch / "win_rates.png", "plots")


def _plot_frontiers(work: Workspace, frontiers: "Mapping[str, Sequence[Reached]]") -> None:
    """Measure, entropy and length over the KL, a picture a benchmark."""
    from dpr_core.reporting import frontier, plots

    for benchmark, points in frontiers.items():
        every = frontier.lines(points)
        panels: dict[str, dict[str, list[tuple[float, tuple[float, float, float]]]]] = {
            points[0].measure.title: {
                name: [(each.x, (each.y, each.low, each.high)) for each in curve]
                for name, curve in frontier.curves(points).items()
            }
        }
        for quantity in ("entropy", "tokens"):
            for name, line in every.items():
                values = [(point.kl, getattr(point, quantity)) for point in line]
                if known := [(kl, (value, value, value)) for kl, value in values if value is not None]:
                    panels.setdefault(quantity, {})[name] = known
        file = work.scratch / f"frontier-{benchmark}.png"
        plots.bands(file, f"Frontier on {benchmark}", "KL to SFT, nats an answer", panels)
        work.file(file, "plots")


def describe(config: StageConfig) -> str:
    return f"{cast(ReportConfig, config).title}: every policy over every benchmark."


STAGE = Stage(
    name="report",
    version=4,
    config=ReportConfig,
    inputs={"*": ("judge", "rate", "answer")},
    body=body,
    describe=describe,
)
