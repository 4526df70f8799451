import json
from pathlib import Path
from typing import Any

import pytest

from perf.demo_seeds import main, markdown


def row(policy: str, benchmark: str = "lab", **values: Any) -> dict[str, Any]:
    return {
        "policy": policy,
        "benchmark": benchmark,
        "is_baseline": policy == "SFT",
        "response_tokens": 20.0,
        "accuracy": None,
        "kl_to_sft": None,
        "win_rate": None,
        "win_rate_interval": None,
        **values,
    }


def dpr(accuracy: float, win_rate: float, interval: tuple[float, float] | None) -> dict[str, Any]:
    return row("DPR", accuracy=accuracy, win_rate=win_rate, win_rate_interval=interval, kl_to_sft=0.25)


def test_a_line_a_seed_and_the_gain_over_the_baseline() -> None:
    runs = {
        1: {"rows": [row("SFT", accuracy=0.5), dpr(0.75, 60.0, (55.0, 65.5))]},
        2: {"rows": [row("SFT", accuracy=0.25, response_tokens=21.0), dpr(0.52, 50.0, None)]},
    }
    assert markdown(runs).splitlines() == [
        "| seed | SFT: accuracy | DPR: accuracy | DPR: win rate against SFT |",
        "|--:|--:|--:|--:|",
        "| 1 | 50.0 | 75.0 | 60.0 [55.0, 65.5] |",
        "| 2 | 25.0 | 52.0 | 50.0 |",
        "| mean | 37.5 | 63.5 | 55.0 |",
        "",
        # Gains of 25 and 27: their deviation over the root of 2 is 1, and t of 1 degree of freedom is 12.706.
        "- DPR against SFT: accuracy +26.0 points [+13.3, +38.7] over 2 seeds (Student's 95% interval over seeds), "
        "20.0 tokens an answer, KL 0.25 nats.",
        "- SFT: 20.5 tokens an answer.",
    ]


def test_of_what_was_kept_it_makes_the_table_that_the_run_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {seed: {"rows": [row("SFT", accuracy=0.5), dpr(0.5 + seed / 100, 60.0, None)]} for seed in (3, 4, 10)}
    kept = tmp_path / "seeds.json"
    kept.write_text(json.dumps(runs))
    monkeypatch.setattr("sys.argv", ["demo_seeds.py", "--of", str(kept)])
    main()
    assert capsys.readouterr().out == markdown(runs) + "\n"
    assert "over 3 seeds" in markdown(runs)


def test_what_was_not_measured_is_a_dash_or_left_out() -> None:
    lines = markdown({7: {"rows": [row("SFT"), row("DPR")]}}).splitlines()
    assert lines[2:] == [
        "| 7 | \u2013 | \u2013 | \u2013 |",
        "| mean | \u2013 | \u2013 | \u2013 |",
        "",
        "- DPR against SFT: accuracy \u2013, 20.0 tokens an answer.",
        "- SFT: 20.0 tokens an answer.",
    ]


def test_each_benchmark_has_columns_and_a_baseline_of_its_own() -> None:
    rows = [
        row("SFT", "lab", accuracy=0.5),
        row("DPR", "lab", accuracy=0.75, win_rate=60.0),
        row("SFT", "mine", accuracy=0.1),
        row("DPR", "mine", accuracy=0.2, win_rate=70.0),
    ]
    lines = markdown({1: {"rows": rows}}).splitlines()
    assert lines[0] == (
        "| seed | SFT on lab: accuracy | DPR on lab: accuracy | SFT on mine: accuracy | DPR on mine: accuracy "
        "| DPR on lab: win rate against SFT | DPR on mine: win rate against SFT |"
    )
    assert lines[2] == "| 1 | 50.0 | 75.0 | 10.0 | 20.0 | 60.0 | 70.0 |"
    assert lines[5].startswith("- DPR on lab against SFT: accuracy +25.0 points over 1 seed, ")
    assert lines[6].startswith("- DPR on mine against SFT: accuracy +10.0 points over 1 seed, ")
    assert lines[7:] == ["- SFT on lab: 20.0 tokens an answer.", "- SFT on mine: 20.0 tokens an answer."]
