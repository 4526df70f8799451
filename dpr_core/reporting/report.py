"""The final table: every policy over every benchmark, with what is needed to judge the win rate."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich import box
from rich.table import Table as TerminalTable
from rich.text import Text

from dpr_core.reporting import tables
from dpr_core.reporting.page import Html, definitions, element, page
from dpr_core.reporting.tables import NONE, escaped
from dpr_core.reporting.visible import visible


@dataclass(frozen=True)
class Row:
    """One policy on one benchmark. Shares and rates lie between 0 and 1, the win rate and its interval in 0-100."""

    policy: str
    benchmark: str
    prompts: int
    response_tokens: float
    """Mean over the answers."""
    cut_share: float
    """Share of answers cut at the length limit."""
    accuracy: float | None = None
    """Share of right answers, where results can be checked."""
    kl_to_sft: float | None = None
    """KL to SFT an answer, in nats."""
    is_baseline: bool = False
    win_rate: float | None = None
    win_rate_interval: tuple[float, float] | None = None
    contradiction_rate: float | None = None
    first_position_rate: float | None = None
    published: float | None = None
    """The paper's win rate for the same backbone, policy and benchmark."""


@dataclass(frozen=True)
class Table:
    """The rows, against which policy they were judged, and where all of it comes from."""

    title: str
    rows: tuple[Row, ...]
    baseline: str = "SFT"
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def estimand(self) -> str:
        """What the win rate is."""
        return f"win rate against {self.baseline}, both orders, ties 0.5"


@dataclass(frozen=True)
class _Column:
    heading: str
    cell: Callable[[Row], str]
    is_text: bool = False


def as_dict(table: Table) -> dict[str, Any]:
    """The table as JSON values."""
    return {
        "title": table.title,
        "estimand": table.estimand,
        "rows": [asdict(row) for row in table.rows],
        "notes": list(table.notes),
        "provenance": dict(table.provenance),
    }


def as_terminal(table: Table) -> TerminalTable:
    """The table for a terminal."""
    view = TerminalTable(
        title=Text(visible(table.title)),
        caption=Text(visible(_caption(table))),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for column in _columns(table):
        name, _, unit = column.heading.rpartition(" ")
        heading = f"{name}\n{unit}" if name else column.heading
        if column.is_text:
            view.add_column(heading, overflow="fold")
        else:
            view.add_column(heading, justify="right", no_wrap=True)
    for row in table.rows:
        view.add_row(*(Text(visible(column.cell(row))) for column in _columns(table)))
    return view


def overview(table: Table) -> tables.Table | None:
    """Win rates in the paper's layout, policies by benchmarks; None where there is but one benchmark, and no paper's
    figure for it."""
    benchmarks = list(dict.fromkeys(row.benchmark for row in table.rows))
    policies = list(dict.fromkeys(row.policy for row in table.rows if not row.is_baseline))
    if len(benchmarks) < 2 and not _any(table.rows, "published"):
        return None
    cells = {(row.policy, row.benchmark): _beside_the_paper(row) for row in table.rows}
    return tables.Table(
        ["win rate %", *benchmarks],
        [[policy, *(cells.get((policy, benchmark), NONE) for benchmark in benchmarks)] for policy in policies],
    )


def _beside_the_paper(row: Row) -> str:
    return _win_rate(row) if row.published is None else f"{_win_rate(row)} (paper {row.published:.1f})"


def as_markdown(table: Table) -> str:
    """The table as a Markdown section."""
    columns = _columns(table)
    first = overview(table)
    lines = [f"## {escaped(table.title)}", "", *([first.as_markdown(), ""] if first else [])]
    lines.append("| " + " | ".join(column.heading for column in columns) + " |")
    lines.append("|" + "|".join("---" if column.is_text else "--:" for column in columns) + "|")
    lines += ["| " + " | ".join(_markdown_cell(column, row) for column in columns) + " |" for row in table.rows]
    lines += ["", escaped(_caption(table))]
    if table.provenance:
        lines += [""] + [f"- {escaped(name)}: {escaped(value)}" for name, value in table.provenance.items()]
    return "\n".join(lines) + "\n"


def as_html(table: Table) -> str:
    """The table as one self-contained page."""
    columns, first = _columns(table), overview(table)
    head = [element("th", c.heading, scope="col", class_="text" if c.is_text else "number") for c in columns]
    rows = [
        element(
            "tr",
            *(element("td", visible(c.cell(row)), class_="text" if c.is_text else "number") for c in columns),
            class_="baseline" if row.is_baseline else "policy",
        )
        for row in table.rows
    ]
    return page(
        table.title,
        element("h1", visible(table.title)),
        element("p", visible(_sentence(table.estimand) + _INTERVAL), class_="quiet"),
        *([first.as_html()] if first else []),
        element(
            "div",
            element("table", element("thead", element("tr", *head)), element("tbody", *rows)),
            class_="scroll",
        ),
        *(element("p", visible(note), class_="quiet") for note in table.notes),
        element("footer", definitions(table.provenance, "provenance")) if table.provenance else Html(""),
        style=STYLE,
    )


_INTERVAL = " Brackets: 95% bootstrap interval over prompts."


def _columns(table: Table) -> list[_Column]:
    """What every row has, and of the rest what at least one row has."""
    rows = table.rows
    several = len({row.benchmark for row in rows}) > 1
    columns = [
        (True, _Column("policy", lambda row: row.policy, is_text=True)),
        (several, _Column("benchmark", lambda row: row.benchmark, is_text=True)),
        (_any(rows, "accuracy"), _Column("accuracy %", lambda row: _percent(row.accuracy))),
        (True, _Column("win rate %", _win_rate)),
        (_any(rows, "contradiction_rate"), _Column("contradictions %", lambda row: _percent(row.contradiction_rate))),
        (_any(rows, "first_position_rate"), _Column("first wins %", lambda row: _percent(row.first_position_rate))),
        (True, _Column("tokens", lambda row: f"{row.response_tokens:.1f}")),
        (True, _Column("cut %", lambda row: _percent(row.cut_share))),
        (_any(rows, "kl_to_sft"), _Column("KL (nats)", lambda row: _optional(row.kl_to_sft, "{:.3f}"))),
        (True, _Column("prompts", lambda row: str(row.prompts))),
    ]
    return [column for wanted, column in columns if wanted]


def _any(rows: tuple[Row, ...], name: str) -> bool:
    return any(getattr(row, name) is not None for row in rows)


def _win_rate(row: Row) -> str:
    if row.is_baseline:
        return "baseline"
    if row.win_rate is None:
        return "unreadable"
    interval = row.win_rate_interval
    return f"{row.win_rate:.1f}" + (f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else "")


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.1f}"


def _optional(value: float | None, form: str) -> str:
    return NONE if value is None else form.format(value)


def _caption(table: Table) -> str:
    return " ".join([_sentence(table.estimand) + _INTERVAL, *table.notes])


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _markdown_cell(column: _Column, row: Row) -> str:
    return escaped(column.cell(row)) if column.is_text else column.cell(row)


STYLE = """
.scroll { overflow-x: auto; margin: 1.25rem 0; border: 1px solid var(--line); border-radius: .75rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { font-size: .75rem; font-weight: 600; color: var(--quiet); background: var(--card); white-space: nowrap; }
th, td { padding: .55rem .9rem; border-bottom: 1px solid var(--line); }
tbody tr:last-child td { border-bottom: 0; }
.text { text-align: left; }
.number { text-align: right; white-space: nowrap; }
.baseline td { color: var(--quiet); }
td.text { font-weight: 600; }
"""
