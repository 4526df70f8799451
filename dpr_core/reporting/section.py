"""A part of a report that stands below its main table."""

from dataclasses import dataclass

from dpr_core.reporting.page import Html


@dataclass(frozen=True)
class Section:
    """The same part for the page and for the Markdown document, each without its heading."""

    title: str
    html: Html
    markdown: str
    """Empty for what only a page can show."""
