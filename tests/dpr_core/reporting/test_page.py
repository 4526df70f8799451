import pytest
from jinja2 import UndefinedError

from dpr_core.reporting.page import TEMPLATES, page, render
from dpr_core.reporting.tables import Table


def test_a_template_shows_nothing_as_it_came() -> None:
    evil = "<b>&\u202e\n'\""
    shown = render("section.html", table=Table(["x"], [["1"]]), before=[evil], after=[], folded="")
    assert shown.startswith('<p class="quiet">&lt;b&gt;&amp;\u27e8U+202E\u27e9\u21b5&#x27;&quot;</p><div')


def test_a_value_that_a_template_lacks_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'compared' is undefined"):
        page("report.html", "t")


def test_line_breaks_of_templates_are_not_in_a_page() -> None:
    assert render("table.html", headings=["a"], rows=[["b c"]], kinds=["text"]) == (
        '<div class="scroll"><table><thead><tr><th scope="col" class="text">a</th></tr></thead>'
        '<tbody><tr><td class="text">b c</td></tr></tbody></table></div>'
    )


def test_templates_turn_no_text_into_markup() -> None:
    """But for the line break after a token that ends with one."""
    found = {path.name: path.read_text(encoding="utf-8").count("safe") for path in TEMPLATES.glob("*.html")}
    assert {name: count for name, count in found.items() if count} == {"credit.html": 1, "payload_credit.html": 1}
