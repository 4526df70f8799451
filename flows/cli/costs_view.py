"""Views of what judging would cost, beside a plan, and of what it has cost."""

from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from dpr_core.evaluation.budget import Cost
from dpr_core.evaluation.spending import Spent
from dpr_core.reporting.tables import Table
from flows.judging_costs import Costs

HEADINGS = ("judging", "benchmark", "artifacts", "calls", "tokens read", "tokens written", "dollars about", "at most")

SPENT = ("account", "model", "answered", "tokens read", "tokens written", "dollars", "under way or lost", "at most")


def views(costs: Costs) -> list[RenderableType]:
    """For people: nothing where nothing is paid."""
    reused: list[RenderableType] = (
        [Text(f"{costs.reused} judgments are there already and cost nothing.")] if costs.reused else []
    )
    if not costs.lines:
        return reused
    left = [
        Text(
            f"The budget of {budget.account} has ${budget.left:,.2f} left of ${budget.dollars:,.2f}"
            + (": that may not be enough." if budget.may_be_short(costs.total) else ".")
        )
        for budget in costs.budgets
    ]
    rows = [[line.stage, line.benchmark, str(line.judgments), *_cells(line.cost)] for line in costs.lines]
    rows.append(["in all", "", str(sum(line.judgments for line in costs.lines)), *_cells(costs.total)])
    table = Table(HEADINGS, rows, texts=2).as_terminal("What judging would cost")
    return [table, *left, *reused, *map(Text, costs.assumed)]


def spent_view(spent: Sequence[Spent]) -> RenderableType:
    """For people: a line for each account and model."""
    if not spent:
        return Text("Nothing has been judged for money in this DPR_HOME.")
    rows = [
        [
            each.account,
            each.model,
            f"{each.requests:,}",
            _short(each.read),
            _short(each.written),
            "price unknown" if each.without_price == each.requests + each.without_answer else _dollars(each.dollars),
            f"{each.without_answer:,}",
            _dollars(each.set_aside),
        ]
        for each in spent
    ]
    return Table(SPENT, rows, texts=2).as_terminal("What judging has cost")


def _cells(cost: Cost) -> list[str]:
    read, written, dollars = (
        (cost.tokens_read_about, cost.tokens_read_at_most),
        (cost.tokens_written_about, cost.tokens_written_at_most),
        (cost.dollars_about, cost.dollars_at_most),
    )
    return [
        f"{cost.requests:,}",
        *(f"{_short(about)} to {_short(most)}" for about, most in (read, written)),
        *("price unknown" if amount is None else _dollars(amount) for amount in dollars),
    ]


def _dollars(amount: float) -> str:
    """To the cent, and of less than ten cents to the hundredth of one."""
    if 0 < amount < 0.0001:
        return "< 0.0001"
    return f"{amount:.4f}" if 0 < amount < 0.1 else f"{amount:,.2f}"


def _short(tokens: int) -> str:
    return f"{tokens / 1e6:.1f} M" if tokens >= 1e6 else f"{tokens / 1e3:.1f} k"
