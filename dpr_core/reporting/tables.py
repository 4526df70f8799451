"""Tables as Markdown, as HTML and for a terminal."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from rich import box
from rich.table import Table as TerminalTable
from rich.text import Text

from dpr_core.reporting.page import render
from dpr_core.text import escape_control

NONE = "\u2013"
"""What stands in a cell without a value."""


@dataclass(frozen=True)
class Table:
    """Headings, and rows of as many cells. The first `texts` columns hold words, the others numbers."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1

    def as_markdown(self) -> str:
        """Lines of a Markdown table."""
        rule = ["---" if i < self.texts else "--:" for i in range(len(self.headings))]
        lines = [_line(map(escaped, self.headings)), "|" + "|".join(rule) + "|"]
        return "\n".join([*lines, *(_line(map(escaped, row)) for row in self.rows)])

    def as_html(self) -> Markup:
        """A table element that scrolls where the page is narrow."""
        kinds = ["text" if i < self.texts else "number" for i in range(len(self.headings))]
        return render("table.html", headings=self.headings, rows=self.rows, kinds=kinds)

    def as_terminal(self, title: str) -> TerminalTable:
        """The table for a terminal."""
        view = TerminalTable(
            title=Text(escape_control(title)), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
        )
        for i, heading in enumerate(self.headings):
            if i < self.texts:
                view.add_column(Text(escape_control(heading)), overflow="fold")
            else:
                view.add_column(Text(escape_control(heading)), justify="right", no_wrap=True)
        for row in self.rows:
            view.add_row(*(Text(escape_control(cell)) for cell in row))
        return view


def escaped(text: str) -> str:
    """Text as Markdown shows it to the letter."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", escape_control(text))


def _line(cells: "map[str]") -> str:
    return "| " + " | ".join(cells) + " |"
