import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from dpr_core.reporting.report import Row, Table, as_dict, as_html, as_markdown, as_terminal, overview

ESTIMAND = "Win rate against SFT, both orders, ties 0.5."
SFT = Row("SFT", "lab", prompts=600, response_tokens=42.14, cut_share=0.0, accuracy=0.64, is_baseline=True)
DPR = Row(
    "DPR",
    "lab",
    prompts=600,
    response_tokens=43.25,
    cut_share=0.0025,
    accuracy=0.8966,
    kl_to_sft=0.3141,
    win_rate=63.17,
    win_rate_interval=(60.14, 66.36),
)
TABLE = Table("Demo", (SFT, DPR), notes=("One seed.",), provenance={"sft": "abc"})


def terminal(table: Table) -> str:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(as_terminal(table))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_markdown_to_the_letter() -> None:
    assert as_markdown(TABLE) == (
        "## Demo\n"
        "\n"
        "| policy | accuracy % | win rate % | tokens | cut % | KL (nats) | prompts |\n"
        "|---|--:|--:|--:|--:|--:|--:|\n"
        "| SFT | 64.0 | baseline | 42.1 | 0.0 | \u2013 | 600 |\n"
        "| DPR | 89.7 | 63.2 [60.1, 66.4] | 43.2 | 0.2 | 0.314 | 600 |\n"
        "\n"
        f"{ESTIMAND} Brackets: 95% bootstrap interval over prompts. One seed.\n"
        "\n"
        "- sft: abc\n"
    )


def test_the_terminal_table_fits_eighty_columns_and_names_its_estimand() -> None:
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(as_terminal(Table("t", (*TABLE.rows, replace(DPR, policy="extrapolated k=8")))))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("63.2 [60.1, 66.4]") == 2
    assert "extrapolated k=8" in shown
    assert ESTIMAND in " ".join(shown.split())


def test_the_dict_is_json() -> None:
    values = json.loads(json.dumps(as_dict(TABLE), allow_nan=False))
    assert values["estimand"] == "win rate against SFT, both orders, ties 0.5"
    assert values["rows"][1]["win_rate_interval"] == [60.14, 66.36]
    assert values["rows"][0]["win_rate"] is None
    assert (values["notes"], values["provenance"]) == (["One seed."], {"sft": "abc"})


@pytest.mark.parametrize("show", [terminal, as_markdown, as_html])
def test_columns_without_any_value_are_left_out(show: object) -> None:
    bare = Row("SFT", "lab", prompts=3, response_tokens=1.0, cut_share=0.0, is_baseline=True)
    full = Row(
        "DPR", "chat", 3, 1.0, 0.0, accuracy=0.5, kl_to_sft=0.1, contradiction_rate=0.25, first_position_rate=0.5
    )
    optional = ("benchmark", "accuracy", "KL", "contradictions", "first wins")
    assert callable(show)
    assert not [heading for heading in optional if heading in show(Table("t", (bare,)))]
    assert [heading for heading in optional if heading in show(Table("t", (bare, full)))] == list(optional)


def test_a_policy_whose_verdicts_cannot_be_read_has_no_number() -> None:
    row = Row("DPR", "lab", prompts=3, response_tokens=1.0, cut_share=0.0)
    assert "| DPR | unreadable | 1.0 |" in as_markdown(Table("t", (row,)))


def test_one_prompt_has_a_win_rate_without_interval() -> None:
    row = Row("DPR", "lab", prompts=1, response_tokens=1.0, cut_share=0.0, win_rate=100.0)
    assert "| DPR | 100.0 | 1.0 |" in as_markdown(Table("t", (row,)))


def test_the_page_is_escaped_and_loads_nothing() -> None:
    evil = "</style><script>alert(1)</script>\u202e\"'|`[x](http://a)"
    row = Row(evil, "lab", prompts=1, response_tokens=1.0, cut_share=0.0)
    table = Table(evil, (row,), baseline=evil, notes=(evil,), provenance={evil: evil})
    page = as_html(table)
    assert "<script" not in page
    assert "\u202e" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 7
    assert "default-src &#x27;none&#x27;" in page
    assert not re.search(r"(?:src|href|style|url)\s*[=(]", page)
    markdown = as_markdown(table)
    assert "<script" not in markdown.replace("\\<", "")
    assert "\\|" in markdown
    assert "\u202e" not in markdown + terminal(table)


def test_several_benchmarks_stand_side_by_side_with_the_papers_figures() -> None:
    rows = (
        SFT,
        DPR,
        replace(DPR, benchmark="lima", published=62.7),
        replace(DPR, policy="SR", benchmark="lima", win_rate=None),
    )
    table = Table("Demo", rows)
    assert as_markdown(table).split("\n")[2:6] == [
        "| win rate % | lab | lima |",
        "|---|--:|--:|",
        "| DPR | 63.2 \\[60.1, 66.4\\] | 63.2 \\[60.1, 66.4\\] (paper 62.7) |",
        "| SR | \u2013 | unreadable |",
    ]
    assert "(paper 62.7)" in as_html(table)
    assert overview(TABLE) is None
    alone = Table("Demo", (replace(DPR, published=62.7),))
    assert "63.2 [60.1, 66.4] (paper 62.7)" in as_html(alone)
