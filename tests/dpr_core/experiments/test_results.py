import io
from collections.abc import Callable

from rich.console import Console

from dpr_core.experiments import results
from dpr_core.experiments.exhibits import EXHIBITS, GAMMA, REFERENCE, SWEEP
from dpr_core.experiments.observations import Observation

Runs = Callable[..., list[Observation]]
TABLE2, FIGURE2, FIGURE3 = EXHIBITS["table2"], EXHIBITS["figure2"], EXHIBITS["figure3"]


def lines(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def test_the_section_has_verdicts_table_and_plots(runs: Runs, sft: Runs) -> None:
    seen = [
        *sft(2, accuracy=[0.6, 0.62], kl_to_sft=0.0),
        *runs("DPR", [60.0, 60.2], accuracy=[0.8, 0.82], kl_to_sft=[0.5, 0.7], response_tokens=[41.0, 43.0]),
        *runs("with-value", [50.0, 50.4], metrics=[{"guard/stopped_at_iteration": 2.0}, {}]),
    ]
    text = results.as_markdown("Table <2>", TABLE2, seen, TABLE2.verdicts(seen), {"Win [rate]": "plots/win_rate.png"})
    assert lines(text, "## ") == ["## Table \\<2\\>"]
    assert "2 pipelines, seeds 0, 1; asked on lab." in text
    assert lines(text, "| DPR \\> w/V") == [
        "| DPR \\> w/V | paper | reproduced | +9.9 | \\[+8.6, +11.2\\] | .006 | 2 | points | \u2013 |"
    ]
    (equal,) = lines(text, "| w/V =")
    assert equal.endswith("| project | not run | \u2013 | \u2013 | \u2013 | 0 | points, within 5 | \u2013 |")
    assert lines(text, "| policy") == [
        "| policy | win rate % | accuracy % | tokens | cut % | KL (nats) | stopped | seeds |"
    ]
    assert lines(text, "| SFT |")[0].startswith("| SFT | baseline | 61.0 \\[48.3, 73.7\\] | 40.0 | 0.0 | 0.000 |")
    assert lines(text, "| DPR |")[0].startswith("| DPR | 60.1 \\[58.8, 61.4\\] | 81.0 ")
    assert lines(text, "| with-value |")[0].endswith("| 1 | 2 |")
    assert lines(text, "!") == ["![Win \\[rate\\]](plots/win_rate.png)"]


def test_swept_fields_and_benchmarks_have_columns(runs: Runs) -> None:
    seen = [
        *runs("DPR", [60.0], {REFERENCE: 0.25}, metrics={"reward/value_gap_rms": 1.5}),
        *runs("DPR", [61.0], {REFERENCE: [0.1, 0.9]}, benchmark="b"),
    ]
    table = results.table(FIGURE3, seen)
    assert list(table.headings)[:4] == ["reference", "policy", "benchmark", "win rate %"]
    assert "rms of V_SFT - V_ref" in table.headings
    assert [list(row)[:4] for row in table.rows] == [["0.25", "DPR", "lab", "60.0"], ["[0.1, 0.9]", "DPR", "b", "61.0"]]


def test_sft_stands_once_where_the_settings_do_not_reach_it(runs: Runs, sft: Runs) -> None:
    seen = [
        each
        for gamma in (0.95, 1.0)
        for each in (*sft(2, {GAMMA: gamma}, accuracy=[0.5, 0.6]), *runs("DPR", [60.0, 61.0], {GAMMA: gamma}))
    ]
    assert [list(row)[:2] for row in results.table(FIGURE2, seen).rows] == [
        ["any", "SFT"],
        ["0.95", "DPR"],
        ["1", "DPR"],
    ]
    other = [*seen, *sft(1, {GAMMA: 0.9}, accuracy=0.9)]
    assert [list(row)[:2] for row in results.table(FIGURE2, other).rows][::2] == [
        ["0.95", "SFT"],
        ["1", "SFT"],
        ["0.9", "SFT"],
    ]


def test_lambda_stands_beside_a_kl_weight(runs: Runs) -> None:
    beta = "reinforce.algorithm.kl_weight"
    seen = [each for weight in (0.1, 4.0) for each in runs("DPR", [60.0], {beta: weight})]
    table = results.table(FIGURE2, seen)
    assert [row[0] for row in table.rows] == ["0.1 (lambda 11)", "4 (lambda 1.25)"]


def test_sft_that_stands_once_is_over_the_seeds_of_all_settings(runs: Runs, sft: Runs) -> None:
    seen = [
        *sft(1, {GAMMA: 0.95}, accuracy=0.5),
        *sft(2, {GAMMA: 1.0}, accuracy=[0.5, 0.7]),
        *runs("DPR", [60.0, 61.0], {GAMMA: 1.0}),
    ]
    [row] = [row for row in results.table(FIGURE2, seen).rows if row[1] == "SFT"]
    assert (row[0], row[3][:4], row[-1]) == ("any", "60.0", "2")


def test_points_without_a_report_are_named(runs: Runs, sft: Runs) -> None:
    seen = [*sft(1, {GAMMA: 1.0}), *runs("DPR", [60.0], {GAMMA: 1.0})]
    missing = ["gamma=0.95 seed=0", "<b>"]
    text = results.as_markdown("t", FIGURE2, seen, [], {}, missing)
    assert "\n\nMissing, without a report: gamma=0.95 seed=0, \\<b\\>.\n\n" in text
    page = results.as_html("t", FIGURE2, seen, [], {}, missing)
    assert "Missing, without a report: gamma=0.95 seed=0, &lt;b&gt;." in page
    assert "Missing" not in results.as_markdown("t", FIGURE2, seen, [], {}) + results.as_html(
        "t", FIGURE2, seen, [], {}
    )


def test_stops_are_counted_where_there_is_a_guard(runs: Runs) -> None:
    seen = [
        *runs("DPR", [60.0, 61.0], metrics={"rollout/return": 0.3}),
        *runs("early", [60.0], metrics={"guard/stopped_at_iteration": 1.0}),
        *runs("SPIN", [60.0]),
    ]
    assert [row[-2] for row in results.table(TABLE2, seen).rows] == ["0", "1", "\u2013"]


def test_the_best_value_is_named_by_seed(runs: Runs, sft: Runs) -> None:
    seen = [
        *sft(2, {GAMMA: 0.95}),
        *runs("DPR", [61.0, 59.0], {GAMMA: 0.95}),
        *runs("DPR", [60.0, 60.0], {GAMMA: 1.0}),
    ]
    assert results.best_values(FIGURE2, seen) == ["Highest win rate at gamma, seed 0: 0.95; seed 1: 1."]
    assert results.best_values(TABLE2, seen) == []
    assert results.best_values(FIGURE2, []) == []


def test_ties_for_the_best_value_are_all_named(runs: Runs) -> None:
    seen = [each for gamma in (0.93, 0.95, 1.0) for each in runs("DPR", [60.0 - (gamma == 0.95)], {GAMMA: gamma})]
    assert results.best_values(FIGURE2, seen) == ["Highest win rate at gamma, seed 0: 0.93 and 1."]


def test_the_best_value_is_over_all_benchmarks(runs: Runs) -> None:
    rates = {(0.95, "a"): 60.0, (0.95, "b"): 60.0, (1.0, "a"): 50.0, (1.0, "b"): 80.0}
    seen = [each for (g, on), rate in rates.items() for each in runs("DPR", [rate], {GAMMA: g}, benchmark=on)]
    assert results.best_values(FIGURE2, seen) == ["Highest win rate at gamma, seed 0: 1."]


def test_the_page_escapes_what_it_is_given(runs: Runs) -> None:
    page = results.as_html("<script>", SWEEP, runs("<b>", [60.0], {"x": "<i>"}), [], {})
    assert "<script>" not in page
    assert "&lt;b&gt;" in page
    assert "&lt;i&gt;" in page


def test_the_page_holds_its_plots(runs: Runs) -> None:
    page = results.as_html("t", SWEEP, runs("DPR", [60.0]), [], {"Win <rate>": b"PNG"})
    assert '<img src="data:image/png;base64,UE5H" alt="Win &lt;rate&gt;">' in page
    assert "img-src data:" in page
    assert "img-src" not in results.as_html("t", SWEEP, runs("DPR", [60.0]), [], {})


def test_a_quantity_that_stands_in_the_table_anyway_stands_there_once(runs: Runs) -> None:
    text = results.as_markdown("t", EXHIBITS["figure4b"], runs("DPR", [60.0]), [], {})
    assert lines(text, "| policy") == ["| policy | win rate % | tokens | cut % | stopped | seeds |"]


def test_the_terminal_shows_verdicts(runs: Runs, sft: Runs) -> None:
    seen = [*sft(2), *runs("DPR", [60.0, 60.2])]
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(results.as_terminal("Table 1", EXHIBITS["table1"].verdicts(seen)))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[+8.8, +11.4]" in shown
    assert "reproduced" in shown
    assert "not run" in shown


def test_training_times_are_told_by_policy() -> None:
    metrics = {"claims/undecided": 1.0, "seconds/DPR": 24.6, "seconds/a_b": 3.0}
    assert results.training_times(metrics) == "Seconds of training after SFT, mean: DPR 25, a\\_b 3."
    assert results.training_times({"claims/undecided": 1.0}) == ""


def test_the_summary_counts_the_papers_claims_apart(runs: Runs, sft: Runs) -> None:
    seen = [*sft(2), *runs("DPR", [60.0, 60.2]), *runs("extrapolated", [70.0, 70.1])]
    assert results.summary(EXHIBITS["table1"].verdicts(seen)) == (
        "Of the paper's 5 claims: 1 reproduced, 4 not run. Of the project's own 10 claims: 1 not reproduced, 9 not run."
    )
