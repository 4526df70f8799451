"""What judging has cost, as people are shown it."""

from io import StringIO

from rich.console import Console

from dpr_core.evaluation.spending import Spent
from flows.cli.costs_view import spent_view


def test_small_sums_are_shown() -> None:
    spent = [Spent("judging", "gpt-4o", 7, 700, 140, dollars, 0, 1, 0.0) for dollars in (12.3456, 0.0042, 1e-7)]
    console = Console(file=(file := StringIO()), width=120, color_system=None)
    console.print(spent_view(spent))
    text = file.getvalue()
    assert all(f" {shown} " in text for shown in ("12.35", "0.0042", "< 0.0001", "0.00"))
