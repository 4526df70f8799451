import io

from rich.console import Console

from dpr_core.reporting.tables import Table, escaped

TABLE = Table(["policy", "on", "rate"], [["DPR", "a|b", "1.0"], ["<i>", "c", "\u2013"]], texts=2)


def test_markdown_to_the_letter() -> None:
    assert TABLE.as_markdown() == (
        "| policy | on | rate |\n|---|---|--:|\n| DPR | a\\|b | 1.0 |\n| \\<i\\> | c | \u2013 |"
    )


def test_text_stays_text() -> None:
    assert escaped("[x](y)\n`z`\x1b") == "\\[x\\](y)\u21b5\\`z\\`\u27e8U+001B\u27e9"


def test_the_page_escapes_and_aligns() -> None:
    markup = TABLE.as_html()
    assert '<td class="text">&lt;i&gt;</td>' in markup
    assert '<td class="number">1.0</td>' in markup
    assert '<th scope="col" class="number">rate</th>' in markup


def test_the_terminal_takes_no_markup_from_cells() -> None:
    console = Console(file=io.StringIO(), width=60, color_system=None)
    console.print(Table(["claim", "n"], [["[bold]x[/bold]", "1"]]).as_terminal("[red]t"))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[bold]x[/bold]" in shown
    assert "[red]t" in shown
