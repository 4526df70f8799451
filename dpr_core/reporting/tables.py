"""A table of texts, as Markdown, as a page's markup and for a terminal."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table as TerminalTable
from rich.text import Text

from dpr_core.reporting.page import Html, element
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

    def as_html(self) -> Html:
        """A table element that scrolls where the page is narrow."""
        kinds = ["text" if i < self.texts else "number" for i in range(len(self.headings))]
        head = [
            element("th", escape_control(h), scope="col", class_=k) for h, k in zip(self.headings, kinds, strict=True)
        ]
        rows = [
            element("tr", *(element("td", escape_control(c), class_=k) for c, k in zip(row, kinds, strict=True)))
            for row in self.rows
        ]
        table = element("table", element("thead", element("tr", *head)), element("tbody", *rows))
        return element("div", table, class_="scroll")

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
