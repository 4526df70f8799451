"""Win-rate report: every policy over every benchmark, as a page, as Markdown, for a terminal and as JSON.

The main table comes first, then what stands behind it: sections are made of the judgments (sections.py, examples.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Self

from markupsafe import Markup
from rich import box
from rich.table import Table as TerminalTable
from rich.text import Text

from dpr_core.reporting.page import asset, page, render
from dpr_core.reporting.plots import forest
from dpr_core.reporting.tables import NONE, Table, escaped
from dpr_core.text import escape_control

Interval = tuple[float, float]

INTERVAL = "Brackets: 95% bootstrap interval over prompts."

GOLD = (
    "What a program measures of the answers, the benchmark's primary measure first; each is pooled over the answers "
    "that have it."
)

ANSWERS = "Tokens: mean of an answer. Cut: answers that ended at the length limit."

DEGENERATION = (
    "Repeated: the mean share of an answer's 4-grams that stood in it before. Refusals: answers that open with the "
    "words of one."
)

NAMED = 5
"""Policies that the answer in a sentence names with one result; the others are counted."""


@dataclass(frozen=True)
class GoldMeasure:
    """A measure over all prompts of a benchmark, with its bootstrap interval over them."""

    title: str
    value: float
    low: float | None
    high: float | None
    is_share: bool

    def __str__(self) -> str:
        numbers = [n for n in (self.value, self.low, self.high) if n is not None]
        value, *interval = (f"{100 * n:.1f}" if self.is_share else f"{n:.3f}" for n in numbers)
        return f"{value} [{', '.join(interval)}]" if interval else value


@dataclass(frozen=True)
class Row:
    """One policy on one benchmark. Shares and rates lie between 0 and 1, win rates and their intervals in 0-100."""

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
    win_rate_interval: Interval | None = None
    length_adjusted_rate: float | None = None
    """The win rate that a fit predicts for answers as long as the baseline's."""
    length_adjusted_interval: Interval | None = None
    baseline_tokens: float | None = None
    """Mean over the answers that these were judged against."""
    contradiction_rate: float | None = None
    first_position_rate: float | None = None
    unreadable_rate: float | None = None
    """Share of the verdicts."""
    scored_prompts: int | None = None
    """Prompts with at least one readable verdict."""
    published: float | None = None
    """The paper's win rate for the same backbone, policy and benchmark."""
    is_judged: bool = True
    """Whether its answers were compared with the baseline's. Where nothing was answered, nothing was."""
    gold: Mapping[str, "GoldMeasure"] | None = None
    """What a program measured of the answers, by name, the benchmark's primary measure first."""
    repetition: float | None = None
    """Mean share of an answer's 4-grams that stood in it before."""
    refusals: float | None = None
    """Share of answers that open with the words of a refusal."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The row that a report's JSON holds."""
        gold = {name: GoldMeasure(**each) for name, each in (values.get("gold") or {}).items()}
        return cls(**{**values, "gold": gold or None})


@dataclass(frozen=True)
class ReportTable:
    """The rows, against which policy they were judged, and where all of it comes from."""

    title: str
    rows: tuple[Row, ...]
    baseline: str = "SFT"
    notes: tuple[str, ...] = ()
    """What is wrong with the judgments, if anything."""
    provenance: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The table that a report's JSON holds."""
        rows = tuple(map(Row.of, values["rows"]))
        return cls(values["title"], rows, notes=tuple(values["notes"]), provenance=values.get("provenance", {}))

    @property
    def estimand(self) -> str:
        """What the win rate is."""
        return f"win rate against {self.baseline}, both orders, ties 0.5"

    def has(self, name: str) -> bool:
        """Whether any row has this value."""
        return any(getattr(row, name) is not None for row in self.rows)

    @property
    def benchmarks(self) -> list[str]:
        """In the order of the rows."""
        return list(dict.fromkeys(row.benchmark for row in self.rows))

    @property
    def judged(self) -> list[str]:
        """The benchmarks whose answers were compared."""
        return list(dict.fromkeys(row.benchmark for row in self.rows if row.is_judged))

    @property
    def policies(self) -> list[str]:
        """In the order of the rows; the baseline is none of them."""
        return list(dict.fromkeys(row.policy for row in self.rows if not row.is_baseline))


def as_dict(table: ReportTable) -> dict[str, Any]:
    """The table as JSON values."""
    return {
        "title": table.title,
        "estimand": table.estimand,
        "rows": [_as_dict(row) for row in table.rows],
        "notes": list(table.notes),
        "provenance": dict(table.provenance),
    }


def _as_dict(row: Row) -> dict[str, Any]:
    """Where nothing was measured by a program, as before there was such a thing."""
    usual = {"gold": None, "is_judged": True, "repetition": None, "refusals": None}
    return {name: value for name, value in asdict(row).items() if name not in usual or value != usual[name]}


@dataclass(frozen=True)
class Section:
    """A part of a report below its main table, for the page and for the Markdown document, without its heading."""

    title: str
    html: Markup
    markdown: str
    """Empty for what only a page can show."""


def section(
    title: str, table: Table, *, before: Sequence[str] = (), after: Sequence[str] = (), folded: str = ""
) -> Section:
    """A table with paragraphs before and after it, folded under a summary if any; Markdown has both after it."""
    html = render("section.html", table=table, before=before, after=after, folded=folded)
    return Section(title, html, "\n\n".join([table.as_markdown(), *map(escaped, [*before, *after])]))


def as_markdown(table: ReportTable, sections: Sequence[Section] = ()) -> str:
    """The report as a Markdown document."""
    parts = [f"## {escaped(table.title)}", escaped(compared(table))]
    if table.provenance:
        parts.append("\n".join(f"- {escaped(name)}: {escaped(value)}" for name, value in table.provenance.items()))
    parts += [f"**{escaped(line)}**" for line in answer(table)]
    parts += [f"**Warning:** {escaped(note)}" for note in table.notes]
    if table.judged:
        parts += [overview(table).as_markdown(), escaped(sentence(table))]
    for part in (*_own(table), *sections):
        if part.markdown:
            parts += [f"### {escaped(part.title)}", part.markdown]
    return "\n\n".join(parts) + "\n"


def as_html(table: ReportTable, sections: Sequence[Section] = ()) -> str:
    """The report as one page that loads nothing: charts stand before the tables behind them."""
    return page(
        "report.html",
        table.title,
        style=asset("report.css") + asset("examples.css") + asset("reading.css"),
        script=asset("search.js") if any('id="find"' in part.html for part in sections) else "",
        compared=compared(table),
        answer=answer(table),
        notes=table.notes,
        overview=overview_html(table) if table.judged else "",
        captions=captions(table) if table.judged else [],
        sections=sorted([*_charts(table), *_own(table), *sections], key=lambda part: "<figure" not in part.html),
        sources=table.provenance,
    )


def compared(table: ReportTable) -> str:
    """Which policies, against which, on what."""
    counts = {row.benchmark: row.prompts for row in table.rows}
    asked = listed([f"{name} ({counts[name]:,} prompt{'s' if counts[name] != 1 else ''})" for name in table.benchmarks])
    others = listed(table.policies)
    if not table.judged:
        return f"{others or table.baseline} on {asked}."
    return f"{others or table.baseline} against {table.baseline} on {asked}."


def answer(table: ReportTable) -> list[str]:
    """What was found on each benchmark, in a sentence with the intervals."""
    return [line for name in table.benchmarks for line in (_found(table, name), _measured(table, name)) if line]


def _found(table: ReportTable, benchmark: str) -> str:
    """Who wins against the baseline: an interval on one side of 50 tells the two apart."""
    kinds: dict[str, list[str]] = {}
    for row in table.rows:
        if row.benchmark != benchmark or row.win_rate is None or row.is_baseline:
            continue
        if row.win_rate_interval is None:
            kinds.setdefault("without an interval:", []).append(f"{row.policy} ({row.win_rate:.1f}%)")
            continue
        low, high = row.win_rate_interval
        kind = "better than" if low > 50 else "worse than" if high < 50 else "not told apart from"
        named = f"{row.policy} ({row.win_rate:.1f}% {_brackets(row.win_rate_interval)})"
        kinds.setdefault(f"{kind} {table.baseline}:", []).append(named)
    parts = [f"{kind} {listed(names, NAMED)}" for kind, names in kinds.items()]
    return f"On {benchmark}, {'; '.join(parts)}." if parts else ""


def _measured(table: ReportTable, benchmark: str) -> str:
    """The primary measure of a program, of every policy."""
    first = {row.policy: next(iter(row.gold.values())) for row in table.rows if row.benchmark == benchmark and row.gold}
    titles = {measure.title for measure in first.values()}
    if len(titles) != 1:
        return ""
    return f"On {benchmark}, {titles.pop()}: {listed([f'{name} {measure}' for name, measure in first.items()], NAMED)}."


def captions(table: ReportTable) -> list[str]:
    """What the win rates are, and what their signs mean, of those that are there."""
    found = [sentence(table)]
    judged = [sum(row.benchmark == name and row.win_rate is not None for row in table.rows) for name in table.judged]
    if max(judged) > 1:
        found.append(f"Bold is the highest on a benchmark{', underlined the second' if max(judged) > 2 else ''}.")
    if table.has("published"):
        found.append("Paper: its own figure for this backbone and policy.")
    return found


def _charts(table: ReportTable) -> list[Section]:
    """The win rates with their intervals, a picture a benchmark."""
    charts = []
    for name in table.judged:
        here = [row for row in table.rows if row.benchmark == name and row.win_rate_interval]
        bars = {row.policy: (row.win_rate or 0.0, *(row.win_rate_interval or (0, 0))) for row in here}
        if bars:
            label = f"Win rates on {name}"
            charts.append((label, forest(label, f"win rate against {table.baseline}, %", bars, even=50)))
    explained = "Dots are win rates, bars their intervals; the dashed line is where nobody is better."
    return [Section("Win rates", render("charts.html", explained=explained, charts=charts), "")] if charts else []


def listed(names: Sequence[str], most: int = 100) -> str:
    """Names as a sentence has them; of more than `most`, how many others there are."""
    shown = list(names) if len(names) <= most else [*names[: most - 1], f"{len(names) - most + 1} others"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


def _own(table: ReportTable) -> list[Section]:
    """The parts that are made of the rows alone."""
    measured = [section("Gold measures", gold_measures(table), after=[GOLD])] if table.has("gold") else []
    beside, explained = judgments(table), _explained(table)
    explained_answers = [ANSWERS, DEGENERATION] if table.has("repetition") else [ANSWERS]
    return [
        *measured,
        *([section("Beside the win rates", beside, after=explained)] if table.judged else []),
        section("Lengths and results of the answers", answers(table), after=[" ".join(explained_answers)]),
    ]


def overview(table: ReportTable) -> Table:
    """The paper's first table: win rates, policies by benchmarks, the paper's figure beside where there is one."""
    cells = {(row.policy, row.benchmark): _beside_the_paper(row) for row in table.rows}
    return Table(
        ["win rate %", *table.judged],
        [[policy, *(cells.get((policy, on), NONE) for on in table.judged)] for policy in _with_baseline(table)],
    )


class _OverviewCell(NamedTuple):
    text: str
    rank: int | None = None
    """1 is bold, 2 underlined, 0 neither; None where there is no win rate to rank."""
    interval: str = ""
    paper: str = ""


def overview_html(table: ReportTable) -> Markup:
    """The same with the highest win rate on each benchmark in bold and the second underlined."""
    found = {(row.policy, row.benchmark): row for row in table.rows}
    ranks = {on: _ranked(table, on) for on in table.judged}
    rows = {
        policy: [_overview_cell(found.get((policy, on)), ranks[on]) for on in table.judged]
        for policy in _with_baseline(table)
    }
    return render("overview.html", benchmarks=table.judged, baseline=table.baseline, rows=rows)


def _with_baseline(table: ReportTable) -> list[str]:
    return [*([table.baseline] if any(row.is_baseline for row in table.rows) else []), *table.policies]


def _ranked(table: ReportTable, benchmark: str) -> list[float]:
    rates = {row.win_rate for row in table.rows if row.benchmark == benchmark and row.win_rate is not None}
    return sorted(rates, reverse=True)


def _overview_cell(row: Row | None, ranks: Sequence[float]) -> _OverviewCell:
    if row is None or row.win_rate is None:
        return _OverviewCell(NONE if row is None else win_rate(row))
    is_first = len(ranks) > 1 and row.win_rate == ranks[0]
    is_second = len(ranks) > 2 and row.win_rate == ranks[1]
    return _OverviewCell(
        f"{row.win_rate:.1f}",
        1 if is_first else 2 if is_second else 0,
        _brackets(row.win_rate_interval) if row.win_rate_interval else "",
        "" if row.published is None else f"paper {row.published:.1f}",
    )


@dataclass(frozen=True)
class _Column:
    heading: str
    cell: Callable[[Row], str]
    needs: str = ""
    """A column is left out where no row has this value."""
    is_text: bool = False
    explained: str = ""
    """What a reader may not know of it, where it stands beside the win rates."""


_POLICY = _Column("policy", lambda row: row.policy, is_text=True)
_BENCHMARK = _Column("benchmark", lambda row: row.benchmark, is_text=True)
_ACCURACY = _Column("accuracy %", lambda row: _percent(row.accuracy), "accuracy")
_GOLD = _Column("gold measure", lambda row: _primary(row), "gold", is_text=True)
_WIN_RATE = _Column("win rate %", lambda row: win_rate(row))
_CONTRADICTIONS = _Column(
    "contradictions %",
    lambda row: _percent(row.contradiction_rate),
    "contradiction_rate",
    explained="Contradictions: prompts whose two orders end differently.",
)
_FIRST = _Column(
    "first wins %",
    lambda row: _percent(row.first_position_rate),
    "first_position_rate",
    explained="First wins: decided games that the answer shown first won; 50 without position bias.",
)
_TOKENS = _Column("tokens", lambda row: f"{row.response_tokens:.1f}")
_CUT = _Column("cut %", lambda row: _percent(row.cut_share))
_REPETITION = _Column("repeated %", lambda row: _percent(row.repetition), "repetition")
_REFUSALS = _Column("refusals %", lambda row: _percent(row.refusals), "refusals")
_KL = _Column("KL (nats)", lambda row: _optional(row.kl_to_sft, "{:.3f}"), "kl_to_sft")
_PROMPTS = _Column("prompts", lambda row: str(row.prompts))
_OF_ANSWERS = [_TOKENS, _CUT, _REPETITION, _REFUSALS, _KL, _PROMPTS]
_MAIN = [_ACCURACY, _GOLD, _WIN_RATE, _CONTRADICTIONS, _FIRST, *_OF_ANSWERS]


def _judgment_columns(table: ReportTable) -> list[_Column]:
    return [
        _Column("win rate %", win_rate),
        _Column(
            "length-adjusted %",
            _length_adjusted,
            "length_adjusted_rate",
            explained="Length-adjusted: what a logistic fit on the difference in length predicts for answers as long "
            f"as those of {table.baseline}.",
        ),
        _TOKENS,
        _Column(f"tokens of {table.baseline}", lambda row: _optional(row.baseline_tokens, "{:.1f}"), "baseline_tokens"),
        _CONTRADICTIONS,
        _FIRST,
        _Column(
            "unreadable %",
            lambda row: _percent(row.unreadable_rate),
            "unreadable_rate",
            explained="Unreadable: verdicts that count for nothing.",
        ),
        _Column("prompts", _scored),
    ]


def judgments(table: ReportTable) -> Table:
    """Beside every win rate, what is needed to trust it."""
    rows = [row for row in table.rows if row.is_judged and not row.is_baseline]
    return _tabulated(table, _judgment_columns(table), rows)


def _explained(table: ReportTable) -> list[str]:
    """The columns beside the win rates, of those that are there."""
    words = " ".join(column.explained for column in _shown(table, _judgment_columns(table)) if column.explained)
    return [words] if words else []


def answers(table: ReportTable) -> Table:
    """The answers of every policy, the baseline's too, whoever judged them."""
    return _tabulated(table, [_ACCURACY, *_OF_ANSWERS], table.rows)


def gold_measures(table: ReportTable) -> Table:
    """Every measure of every policy, the baseline's too."""
    rows = [row for row in table.rows if row.gold]
    titles = list(dict.fromkeys(each.title for row in rows for each in (row.gold or {}).values()))

    def column(title: str) -> _Column:
        return _Column(title, lambda row: next((str(m) for m in (row.gold or {}).values() if m.title == title), NONE))

    return _tabulated(table, [*map(column, titles), _PROMPTS], rows)


def _primary(row: Row) -> str:
    """The benchmark's primary measure, by name: benchmarks may have different ones."""
    first = next(iter((row.gold or {}).values()), None)
    return NONE if first is None else f"{first.title} {first}"


def _tabulated(table: ReportTable, columns: Sequence[_Column], rows: Sequence[Row]) -> Table:
    shown = _shown(table, columns)
    cells = [[column.cell(row) for column in shown] for row in rows]
    return Table([column.heading for column in shown], cells, 2 if _BENCHMARK in shown else 1)


def _shown(table: ReportTable, columns: Sequence[_Column]) -> list[_Column]:
    """Whose row it is, and the columns that have anything in them."""
    several = [_BENCHMARK] if len(table.benchmarks) > 1 else []
    return [_POLICY, *several, *(column for column in columns if not column.needs or table.has(column.needs))]


def main_table(table: ReportTable) -> Table:
    """All policies, and what is asked first."""
    return _tabulated(table, _MAIN, table.rows)


def as_terminal(table: ReportTable) -> TerminalTable:
    """One table for a terminal, with what there is room for."""
    view = TerminalTable(
        title=Text(escape_control(table.title)),
        caption=Text(escape_control(" ".join(filter(None, [sentence(table), *table.notes])))),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    columns = _shown(table, _MAIN)
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
    """What the win rate is, and its interval, where there are any."""
    if not table.judged:
        return ""
    what = f"{table.estimand[0].upper()}{table.estimand[1:]}."
    return f"{what} {INTERVAL}" if table.has("win_rate_interval") else what


def win_rate(row: Row) -> str:
    """The win rate of a row with its interval, or why it has none."""
    if not row.is_judged:
        return NONE
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
