import io
import json
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from markupsafe import Markup
from rich.console import Console

from dpr_core.reporting import tables
from dpr_core.reporting.report import (
    GoldMeasure,
    ReportTable,
    Row,
    Section,
    answer,
    as_dict,
    as_html,
    as_markdown,
    as_terminal,
    overview,
)

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
    length_adjusted_rate=55.04,
    length_adjusted_interval=(52.0, 58.16),
    baseline_tokens=42.14,
    unreadable_rate=0.0125,
    scored_prompts=598,
)
TABLE = ReportTable("Demo", (SFT, DPR), notes=("One seed.",), provenance={"sft": "abc"})


def terminal(table: ReportTable) -> str:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(as_terminal(table))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_markdown_to_the_letter() -> None:
    document = as_markdown(
        TABLE, [Section("More", Markup("<p>page</p>"), "words"), Section("Page", Markup("<p></p>"), "")]
    )
    assert document == (
        "## Demo\n"
        "\n"
        "DPR against SFT on lab (600 prompts).\n"
        "\n"
        "- sft: abc\n"
        "\n"
        "**On lab, better than SFT: DPR (63.2% \\[60.1, 66.4\\]).**\n"
        "\n"
        "**Warning:** One seed.\n"
        "\n"
        "| win rate % | lab |\n"
        "|---|--:|\n"
        "| SFT | baseline |\n"
        "| DPR | 63.2 \\[60.1, 66.4\\] |\n"
        "\n"
        f"{ESTIMAND} Brackets: 95% bootstrap interval over prompts.\n"
        "\n"
        "### Beside the win rates\n"
        "\n"
        "| policy | win rate % | length-adjusted % | tokens | tokens of SFT | unreadable % | prompts |\n"
        "|---|--:|--:|--:|--:|--:|--:|\n"
        "| DPR | 63.2 \\[60.1, 66.4\\] | 55.0 \\[52.0, 58.2\\] | 43.2 | 42.1 | 1.2 | 598 of 600 |\n"
        "\n"
        "Length-adjusted: what a logistic fit on the difference in length predicts for answers as long as those of "
        "SFT. Unreadable: verdicts that count for nothing.\n"
        "\n"
        "### Lengths and results of the answers\n"
        "\n"
        "| policy | accuracy % | tokens | cut % | KL (nats) | prompts |\n"
        "|---|--:|--:|--:|--:|--:|\n"
        "| SFT | 64.0 | 42.1 | 0.0 | \u2013 | 600 |\n"
        "| DPR | 89.7 | 43.2 | 0.2 | 0.314 | 600 |\n"
        "\n"
        "Tokens: mean of an answer. Cut: answers that ended at the length limit.\n"
        "\n"
        "### More\n"
        "\n"
        "words\n"
    )


@pytest.mark.parametrize("show", [as_markdown, as_html])
def test_captions_explain_what_is_there_and_nothing_else(show: Callable[[ReportTable], str]) -> None:
    signs = ("Contradictions:", "First wins:", "Unreadable:", "Length-adjusted:", "Brackets:")
    full = show(ReportTable("t", (SFT, replace(DPR, contradiction_rate=0.25, first_position_rate=0.5))))
    assert [sign for sign in signs if sign in full] == list(signs)
    bare = show(ReportTable("t", (SFT, Row("DPR", "lab", 1, 1.0, 0.0, win_rate=100.0))))
    assert [sign for sign in signs if sign in bare] == []
    assert "Bold is" not in bare


def test_the_answer_is_a_sentence_a_benchmark_with_the_intervals() -> None:
    rates = {"DPR": (60.0, 55.0, 65.0), "SR": (52.0, 47.0, 57.0), "worse": (40.0, 35.0, 45.0), "GSIL": (61.0, 56, 66)}
    rows = [replace(DPR, policy=name, win_rate=r, win_rate_interval=(a, b)) for name, (r, a, b) in rates.items()]
    assert answer(ReportTable("t", (SFT, *rows, replace(DPR, benchmark="one", win_rate_interval=None)))) == [
        "On lab, better than SFT: DPR (60.0% [55.0, 65.0]) and GSIL (61.0% [56.0, 66.0]); "
        "not told apart from SFT: SR (52.0% [47.0, 57.0]); worse than SFT: worse (40.0% [35.0, 45.0]).",
        "On one, without an interval: DPR (63.2%).",
    ]
    many = [replace(DPR, policy=f"p{i}") for i in range(9)]
    assert answer(ReportTable("t", (SFT, *many)))[0].endswith("p3 (63.2% [60.1, 66.4]) and 5 others.")


def test_the_terminal_table_fits_eighty_columns_and_names_its_estimand() -> None:
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(as_terminal(ReportTable("t", (*TABLE.rows, replace(DPR, policy="extrapolated k=8")))))
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
    assert Row(**values["rows"][1]).scored_prompts == 598


@pytest.mark.parametrize("show", [terminal, as_markdown, as_html])
def test_columns_without_any_value_are_left_out(show: object) -> None:
    bare = Row("SFT", "lab", prompts=3, response_tokens=1.0, cut_share=0.0, is_baseline=True)
    full = Row(
        "DPR", "chat", 3, 1.0, 0.0, accuracy=0.5, kl_to_sft=0.1, contradiction_rate=0.25, first_position_rate=0.5
    )
    optional = ("benchmark", "accuracy", "KL", "contradictions", "first wins")
    assert callable(show)
    assert not [heading for heading in optional if heading in show(ReportTable("t", (bare,)))]
    assert [heading for heading in optional if heading in show(ReportTable("t", (bare, full)))] == list(optional)


def test_a_policy_whose_verdicts_cannot_be_read_has_no_number() -> None:
    row = Row("DPR", "lab", prompts=3, response_tokens=1.0, cut_share=0.0)
    assert "| DPR | unreadable | 1.0 |" in as_markdown(ReportTable("t", (row,)))
    assert '<td class="number">unreadable</td>' in as_html(ReportTable("t", (row,)))


def test_one_prompt_has_a_win_rate_without_interval() -> None:
    row = Row("DPR", "lab", prompts=1, response_tokens=1.0, cut_share=0.0, win_rate=100.0)
    assert "| DPR | 100.0 | 1.0 |" in as_markdown(ReportTable("t", (row,)))


def test_the_page_is_escaped_and_loads_nothing() -> None:
    evil = "</style><script>alert(1)</script>\u202e\"'|`[x](http://a)"
    row = Row(evil, "lab", prompts=1, response_tokens=1.0, cut_share=0.0)
    table = ReportTable(evil, (row,), baseline=evil, notes=(evil,), provenance={evil: evil})
    page = as_html(table)
    assert "<script" not in page
    assert "\u202e" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 11
    assert "default-src &#x27;none&#x27;" in page
    assert not re.search(r"""(?:src|href|style|url)\s*[=(](?!"#part\d+")""", page)
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
    table = ReportTable("Demo", rows)
    assert overview(table).as_markdown().split("\n") == [
        "| win rate % | lab | lima |",
        "|---|--:|--:|",
        "| SFT | baseline | \u2013 |",
        "| DPR | 63.2 \\[60.1, 66.4\\] | 63.2 \\[60.1, 66.4\\] (paper 62.7) |",
        "| SR | \u2013 | unreadable |",
    ]
    assert overview(table).as_markdown() in as_markdown(table)
    assert '<small class="paper">paper 62.7</small>' in as_html(table)


def test_the_highest_is_bold_and_the_second_underlined_where_there_are_three() -> None:
    rows = [replace(DPR, policy=name, win_rate=rate) for name, rate in (("a", 55.0), ("b", 61.0), ("c", 50.0))]
    page = as_html(ReportTable("t", (SFT, *rows)))
    assert re.findall(r"<(strong|u)>([\d.]+)<", page) == [("u", "55.0"), ("strong", "61.0")]
    assert re.findall(r"<(strong|u)>([\d.]+)<", as_html(ReportTable("t", (SFT, *rows[:2])))) == [("strong", "61.0")]
    assert not re.findall(r"<(strong|u)>[\d.]+<", as_html(ReportTable("t", (SFT, rows[0]))))


def test_the_page_has_one_reading_order() -> None:
    parts = [Section("One <1>", tables.Table(["x"], [["y"]]).as_html(), ""), Section("Two", Markup("<p>z</p>"), "z")]
    page = as_html(TABLE, parts)
    places = [
        page.index(text)
        for text in (
            "600 prompts",
            "better than",
            "Warning: ",
            "<table",
            "<nav",
            "<figure",
            ">Beside the win rates</h2>",
            ">One &lt;1&gt;</h2>",
            ">Two</h2>",
        )
    ]
    assert places == sorted(places)


def test_gold_measures_have_a_table_and_likelihoods_no_win_rate() -> None:
    right = {"right": GoldMeasure("right %", 0.432, 0.4, 0.47, True)}
    nats = {"nats_per_token": GoldMeasure("nats a token", 1.25, None, None, False)}
    rows = (SFT, replace(DPR, gold=right), Row("DPR", "held", 9, 5.0, 0.0, is_judged=False, gold=nats))
    table = ReportTable("Demo", rows)
    assert table.judged == ["lab"]
    document = as_markdown(table)
    assert "| policy | benchmark | right % | nats a token | prompts |" in document
    assert "| DPR | lab | 43.2 \\[40.0, 47.0\\] | \u2013 | 600 |" in document
    assert "| DPR | held | \u2013 | 1.250 | 9 |" in document
    assert "| win rate % | lab |" in document
    assert "nats a token" in as_html(table)
    kept = json.loads(json.dumps(as_dict(table)))["rows"]
    assert ["gold" in row for row in kept] == [False, True, True]
    again = ReportTable("Demo", tuple(Row.of(row) for row in kept))
    assert "right % 43.2 [40.0, 47.0]" in " ".join(terminal(again).split())
    alone = ReportTable("Demo", rows[2:])
    assert "win rate" not in as_markdown(alone).lower() + as_html(alone).lower()
    assert answer(alone) == ["On held, nats a token: DPR 1.250."]
    assert "nats a token" in terminal(alone)
