"""The rows of a report as tables: the paper's layout, what stands beside a win rate, the answers, the terminal's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table as TerminalTable
from rich.text import Text

from dpr_core.reporting import tables
from dpr_core.reporting.page import Html, element, join
from dpr_core.reporting.rows import Interval, ReportTable, Row
from dpr_core.reporting.tables import NONE
from dpr_core.text import escape_control

INTERVAL = "Brackets: 95% bootstrap interval over prompts."


@dataclass(frozen=True)
class _Column:
    heading: str
    cell: Callable[[Row], str]
    needs: str = ""
    """A column is left out where no row has this value."""
    is_text: bool = False


_POLICY = _Column("policy", lambda row: row.policy, is_text=True)
_BENCHMARK = _Column("benchmark", lambda row: row.benchmark, is_text=True)
_ACCURACY = _Column("accuracy %", lambda row: _percent(row.accuracy), "accuracy")
_WIN_RATE = _Column("win rate %", lambda row: win_rate(row))
_CONTRADICTIONS = _Column("contradictions %", lambda row: _percent(row.contradiction_rate), "contradiction_rate")
_FIRST = _Column("first wins %", lambda row: _percent(row.first_position_rate), "first_position_rate")
_TOKENS = _Column("tokens", lambda row: f"{row.response_tokens:.1f}")
_CUT = _Column("cut %", lambda row: _percent(row.cut_share))
_KL = _Column("KL (nats)", lambda row: _optional(row.kl_to_sft, "{:.3f}"), "kl_to_sft")
_PROMPTS = _Column("prompts", lambda row: str(row.prompts))


def overview(table: ReportTable) -> tables.Table:
    """The paper's first table: win rates, policies by benchmarks, the paper's figure beside where there is one."""
    cells = {(row.policy, row.benchmark): _beside_the_paper(row) for row in table.rows}
    policies = [*([table.baseline] if any(row.is_baseline for row in table.rows) else []), *table.policies]
    return tables.Table(
        ["win rate %", *table.benchmarks],
        [[policy, *(cells.get((policy, on), NONE) for on in table.benchmarks)] for policy in policies],
    )


def overview_html(table: ReportTable) -> Html:
    """The same with the highest win rate on each benchmark in bold and the second underlined."""
    head = [element("th", escape_control(name), scope="col", class_="number") for name in table.benchmarks]
    found = {(row.policy, row.benchmark): row for row in table.rows}
    ranks = {on: _ranked(table, on) for on in table.benchmarks}
    policies = [*([table.baseline] if any(row.is_baseline for row in table.rows) else []), *table.policies]
    body = []
    for policy in policies:
        cells = [_overview_cell(found.get((policy, on)), ranks[on]) for on in table.benchmarks]
        kind = "baseline" if policy == table.baseline else "policy"
        body.append(
            element("tr", element("th", escape_control(policy), scope="row", class_="text"), *cells, class_=kind)
        )
    corner = element("th", "Win rate, %", scope="col", class_="text")
    drawn = element("table", element("thead", element("tr", corner, *head)), element("tbody", *body))
    return element("div", drawn, class_="scroll overview")


def _ranked(table: ReportTable, benchmark: str) -> list[float]:
    rates = {row.win_rate for row in table.rows if row.benchmark == benchmark and row.win_rate is not None}
    return sorted(rates, reverse=True)


def _overview_cell(row: Row | None, ranks: Sequence[float]) -> Html:
    if row is None or row.win_rate is None:
        shown: Html | str = NONE if row is None else win_rate(row)
        return element("td", shown, class_="number")
    rate = f"{row.win_rate:.1f}"
    if len(ranks) > 1 and row.win_rate == ranks[0]:
        rate = element("strong", rate)
    elif len(ranks) > 2 and row.win_rate == ranks[1]:
        rate = element("u", rate)
    beside = [element("small", _brackets(row.win_rate_interval))] if row.win_rate_interval else []
    if row.published is not None:
        beside.append(element("small", f"paper {row.published:.1f}", class_="paper"))
    return element("td", element("span", rate, class_="rate"), *(join(" ", each) for each in beside), class_="number")


def judgments(table: ReportTable) -> tables.Table:
    """Beside every win rate, what is needed to trust it."""
    columns = [
        _Column("win rate %", win_rate),
        _Column("length-adjusted %", _length_adjusted, "length_adjusted_rate"),
        _TOKENS,
        _Column(f"tokens of {table.baseline}", lambda row: _optional(row.baseline_tokens, "{:.1f}"), "baseline_tokens"),
        _CONTRADICTIONS,
        _FIRST,
        _Column("unreadable %", lambda row: _percent(row.unreadable_rate), "unreadable_rate"),
        _Column("prompts", _scored),
    ]
    return _tabulated(table, columns, [row for row in table.rows if not row.is_baseline])


def answers(table: ReportTable) -> tables.Table:
    """The answers of every policy, the baseline's too, whoever judged them."""
    return _tabulated(table, [_ACCURACY, _TOKENS, _CUT, _KL, _PROMPTS], table.rows)


def _tabulated(table: ReportTable, columns: Sequence[_Column], rows: Sequence[Row]) -> tables.Table:
    texts = [_POLICY, *([_BENCHMARK] if len(table.benchmarks) > 1 else [])]
    shown = [*texts, *(column for column in columns if not column.needs or table.has(column.needs))]
    cells = [[column.cell(row) for column in shown] for row in rows]
    return tables.Table([column.heading for column in shown], cells, len(texts))


def as_terminal(table: ReportTable) -> TerminalTable:
    """One table for a terminal, with what there is room for."""
    view = TerminalTable(
        title=Text(escape_control(table.title)),
        caption=Text(escape_control(" ".join([sentence(table), *table.notes]))),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    several = [_BENCHMARK] if len(table.benchmarks) > 1 else []
    every = [_POLICY, *several, _ACCURACY, _WIN_RATE, _CONTRADICTIONS, _FIRST, _TOKENS, _CUT, _KL, _PROMPTS]
    columns = [column for column in every if not column.needs or table.has(column.needs)]
    for column in columns:
        name, _, unit = column.heading.rpartition(" ")
        heading = f"{name}\n{unit}" if name else column.heading
        if column.is_text:
            view.add_column(heading, overflow="fold")
        else:
            view.add_column(heading, justify="right", no_wrap=True)
    for row in table.rows:
        view.add_row(*(Text(escape_control(column.cell(row))) for column in columns))
    return view


def sentence(table: ReportTable) -> str:
    """What the win rate is, and its interval."""
    return f"{table.estimand[0].upper()}{table.estimand[1:]}. {INTERVAL}"


def win_rate(row: Row) -> str:
    """The win rate of a row with its interval, or why it has none."""
    if row.is_baseline:
        return "baseline"
    if row.win_rate is None:
        return "unreadable"
    return " ".join([f"{row.win_rate:.1f}", *([_brackets(row.win_rate_interval)] if row.win_rate_interval else [])])


def _beside_the_paper(row: Row) -> str:
    return win_rate(row) if row.published is None else f"{win_rate(row)} (paper {row.published:.1f})"


def _length_adjusted(row: Row) -> str:
    if row.length_adjusted_rate is None:
        return NONE
    interval = row.length_adjusted_interval
    return " ".join([f"{row.length_adjusted_rate:.1f}", *([_brackets(interval)] if interval else [])])


def _brackets(interval: Interval) -> str:
    return f"[{interval[0]:.1f}, {interval[1]:.1f}]"


def _scored(row: Row) -> str:
    lost = row.scored_prompts is not None and row.scored_prompts != row.prompts
    return f"{row.scored_prompts:,} of {row.prompts:,}" if lost else f"{row.prompts:,}"


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.1f}"


def _optional(value: float | None, form: str) -> str:
    return NONE if value is None else form.format(value)
