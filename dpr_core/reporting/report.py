"""The report as one self-contained page and as Markdown: the main table first, then all that stands behind it."""

from collections.abc import Sequence

from dpr_core.reporting import charts, examples, layout
from dpr_core.reporting.page import Html, definitions, element, page
from dpr_core.reporting.rows import ReportTable
from dpr_core.reporting.section import Section
from dpr_core.reporting.tables import escaped
from dpr_core.text import escape_control

BESIDE = (
    "The length-adjusted rate is what a logistic fit on the difference in length predicts for answers as long as the "
    "baseline's. Contradictions: prompts whose two orders end differently. First wins: decided games that the answer "
    "shown first won; 50 without position bias. Unreadable: verdicts that count for nothing."
)


def as_markdown(table: ReportTable, sections: Sequence[Section] = ()) -> str:
    """The report as a Markdown document."""
    parts = [f"## {escaped(table.title)}", escaped(layout.sentence(table))]
    parts += [f"**Warning:** {escaped(note)}" for note in table.notes]
    parts.append(layout.overview(table).as_markdown())
    for part in (*_own(table), *sections):
        if part.markdown:
            parts += [f"### {escaped(part.title)}", part.markdown]
    if table.provenance:
        parts.append("\n".join(f"- {escaped(name)}: {escaped(value)}" for name, value in table.provenance.items()))
    return "\n\n".join(parts) + "\n"


def as_html(table: ReportTable, sections: Sequence[Section] = ()) -> str:
    """The report as one page that loads nothing."""
    return page(
        table.title,
        element("h1", escape_control(table.title)),
        element("p", escape_control(layout.sentence(table)), class_="quiet"),
        *(element("p", element("strong", "Warning: "), escape_control(note), class_="warning") for note in table.notes),
        layout.overview_html(table),
        *(element("section", element("h2", part.title), part.html) for part in (*_own(table), *sections)),
        element("footer", definitions(table.provenance, "provenance")) if table.provenance else Html(""),
        style=STYLE + charts.STYLE + examples.STYLE,
    )


def _own(table: ReportTable) -> list[Section]:
    """The parts that are made of the rows alone."""
    shown = []
    for title, made, caption in (
        ("Beside the win rates", layout.judgments(table), BESIDE),
        ("Answers", layout.answers(table), ""),
    ):
        said = [element("p", caption, class_="quiet")] if caption else []
        text = "\n\n".join(filter(None, [made.as_markdown(), escaped(caption)]))
        shown.append(Section(title, Html("".join([made.as_html(), *said])), text))
    return shown


STYLE = """
body { max-width: 70rem; }
h2 { margin: 2.5rem 0 .5rem; font-size: 1.15rem; letter-spacing: -.005em; }
.scroll { overflow-x: auto; margin: 1.25rem 0; border: 1px solid var(--line); border-radius: .75rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .65rem; vertical-align: top; border-bottom: 1px solid var(--line); overflow-wrap: normal; }
thead th { font-size: .75rem; font-weight: 600; color: var(--quiet); background: var(--card); vertical-align: bottom; }
tbody tr:last-child > * { border-bottom: 0; }
.text { text-align: left; }
.number { text-align: right; }
td.number { white-space: nowrap; }
td.text, th.text { font-weight: 600; }
.scroll { font-size: .9rem; }
.overview { font-size: 1rem; width: fit-content; min-width: min(26rem, 100%); max-width: 100%; }
.overview th, .overview td { padding: .5rem 1rem; }
.baseline > * { color: var(--quiet); }
.overview .rate { font-size: 1.1rem; }
.overview small { display: block; color: var(--quiet); font-size: .8rem; }
.overview .paper { color: var(--accent); }
.warning { margin: .75rem 0; padding: .6rem .9rem; border: 1px solid var(--alarm); border-left-width: 4px;
  border-radius: .5rem; }
:root { --alarm: #b3541e; }
@media (prefers-color-scheme: dark) { :root { --alarm: #e39a68; } }
details { margin: .4rem 0; }
summary { cursor: pointer; }
code { font-family: var(--mono); font-size: .85em; }
.copy { user-select: all; }
a { color: var(--accent); }
figure { margin: 1rem 0; }
figcaption { font-size: .85rem; font-weight: 600; margin-bottom: .25rem; }
img { max-width: 100%; height: auto; border-radius: .5rem; }
"""
