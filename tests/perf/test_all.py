import json
from pathlib import Path

import pytest

from perf import all as benchmarks

TOLD = {
    "ratios": {"sft_vs_trl_tuned_tiny": 2.54321, "rl_vs_trl": 2.0},
    "machine": {"cores": 2, "load": 0.25},
    "benchmarks": {
        "sft": {"ratios": {}, "rows": [{"case": "tiny", "tokens_per_second": 1234.5, "repeats": [1.0, 2.0]}]},
        "growth": {"rows": [{"work": "rollout", "batch": 16}], "exponents": [{"work": "rollout", "seconds": 1.0}]},
    },
}


def test_there_is_a_script_for_every_name() -> None:
    scripts = {script for suite in (benchmarks.SCRIPTS, benchmarks.REAL) for script, *_ in suite.values()}
    assert [script for script in scripts if not (benchmarks.HERE / f"{script}.py").is_file()] == []


def test_the_plot_shows_what_is_better_where_it_is_more() -> None:
    shown = {"sft_vs_trl": 2.0, "score_memory_plain_over_ours": 10.0}
    others = {"orchestration_flow_over_bare": 1.1, "load": 3.0, "utilisation_sft_small": 0.4}
    assert benchmarks.more_is_better(shown | others) == shown


def test_the_tables_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(TOLD))
    monkeypatch.setattr("sys.argv", ["all.py", "--markdown", str(file)])
    benchmarks.main()
    assert capsys.readouterr().out.split("\n\n") == [
        "cores: 2, load: 0.25",
        "| ratio | value |\n|---|---|\n| sft_vs_trl_tuned_tiny | 2.543 |\n| rl_vs_trl | 2 |",
        "## sft",
        "| case | tokens_per_second |\n|---|---|\n| tiny | 1234 |",
        "## growth",
        "### rows",
        "| work | batch |\n|---|---|\n| rollout | 16 |",
        "### exponents",
        "| work | seconds |\n|---|---|\n| rollout | 1 |\n",
    ]


def test_each_script_is_run_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import json, sys; print(json.dumps({'ratios': {'%s_vs_other': 2}, 'asked': sys.argv[1:]}))"
    for name in ("sft", "growth", "planned"):
        (tmp_path / f"{name}.py").write_text(code % name)
    monkeypatch.setattr(benchmarks, "HERE", tmp_path)
    out = tmp_path / "out.json"
    results = benchmarks.run({"real_sft": ["sft", "--batch", "8"], "growth": ["growth"], "hours": ["planned"]}, out)
    assert results["ratios"] == {"sft_vs_other": 2, "growth_vs_other": 2, "planned_vs_other": 2}
    assert results["benchmarks"]["real_sft"]["asked"] == ["--batch", "8", "--json"]
    assert results["benchmarks"]["hours"]["asked"] == ["--json", "--of", str(out)]
    assert results["benchmarks"]["growth"]["asked"] == ["--json", "--plot", str(tmp_path / "out-growth.png")]
    assert results["benchmarks"]["growth"]["minutes"] > 0
    assert json.loads(out.read_text()) == results
    onto = benchmarks.run({"sft": ["sft"]}, out, results)
    assert list(onto["benchmarks"]) == ["real_sft", "growth", "hours", "sft"]
    assert onto["ratios"] == results["ratios"]


def test_benchmarks_of_either_suite_are_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks, "dtypes", lambda: ["float32"])
    assert benchmarks.chosen(real=False) == benchmarks.SCRIPTS
    assert list(benchmarks.chosen(real=True)) == list(benchmarks.REAL)
    assert benchmarks.chosen(real=False, only=["real_rl"])["real_rl"][-2:] == ["--dtype", "float32"]
    both = [benchmarks.chosen(real, ["rl", "growth"]) for real in (False, True)]
    assert both == [{"rl": ["rl"], "growth": ["growth"]}, {"rl": ["rl"], "growth": ["growth", "--repeats", "1"]}]


def test_a_script_that_fails_leaves_the_others_and_fails_the_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sft.py").write_text("raise SystemExit('there is no memory left')")
    (tmp_path / "rl.py").write_text('print(\'{"ratios": {"rl_vs_other": 2}}\')')
    monkeypatch.setattr(benchmarks, "HERE", tmp_path)
    out = tmp_path / "out.json"
    with pytest.raises(SystemExit, match=r"^sft failed \(see above\); the others are in"):
        benchmarks.run({"sft": ["sft"], "rl": ["rl"]}, out)
    assert json.loads(out.read_text())["ratios"] == {"rl_vs_other": 2}
