"""View of the estimated cost of judging, beside a plan."""

from rich.console import RenderableType
from rich.text import Text

from dpr_core.evaluation.budget import Cost
from dpr_core.reporting.tables import Table
from flows.judging_costs import Costs

HEADINGS = ("judging", "benchmark", "artifacts", "calls", "tokens read", "tokens written", "dollars about", "at most")


def views(costs: Costs) -> list[RenderableType]:
    """For people: nothing where nothing is paid."""
    reused: list[RenderableType] = (
        [Text(f"{costs.reused} judgments are there already and cost nothing.")] if costs.reused else []
    )
    if not costs.lines:
        return reused
    rows = [[line.stage, line.benchmark, str(line.judgments), *_cells(line.cost)] for line in costs.lines]
    rows.append(["in all", "", str(sum(line.judgments for line in costs.lines)), *_cells(costs.total)])
    table = Table(HEADINGS, rows, texts=2).as_terminal("What judging would cost")
    return [table, *reused, *map(Text, costs.assumed)]


def _cells(cost: Cost) -> list[str]:
    read, written, dollars = (
        (cost.tokens_read_about, cost.tokens_read_at_most),
        (cost.tokens_written_about, cost.tokens_written_at_most),
        (cost.dollars_about, cost.dollars_at_most),
    )
    return [
        f"{cost.requests:,}",
        *(f"{_short(about)} to {_short(most)}" for about, most in (read, written)),
        *("price unknown" if amount is None else f"{amount:,.2f}" for amount in dollars),
    ]


def _short(tokens: int) -> str:
    return f"{tokens / 1e6:.1f} M" if tokens >= 1e6 else f"{tokens / 1e3:.1f} k"
