"""A check that runs once and unwatched: whatever a part does, the others are measured."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from perf import gpu_check, gpu_parts
from perf.gpu_check import LIMITS, check, decided
from perf.sizes import LARGE

FAKE = """
import json, os, signal, subprocess, sys, time
part, into = sys.argv[1:]
def write(**found):
    open(into, "w").write(json.dumps(found))
if part == "good":
    write(rows=[1], ratios={"graphs_rollout_x": 2.0})
elif part == "dies":
    write(rows=[1])
    os.kill(os.getpid(), signal.SIGSEGV)
elif part == "fails":
    write(rows=[1], failed="OutOfMemoryError: CUDA out of memory")
    sys.exit(1)
elif part == "breaks":
    raise SystemExit("no kernel image is available")
elif part == "hangs":
    write(rows=[1])
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print(child.pid, file=open(os.environ["CHILD"], "w"), flush=True)
    time.sleep(60)
"""


def test_a_part_that_dies_hangs_or_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, out, child = tmp_path / "fake.py", tmp_path / "out.json", tmp_path / "child"
    script.write_text(FAKE)
    monkeypatch.setenv("CHILD", str(child))
    limits = {"dies": 20.0, "fails": 20.0, "breaks": 20.0, "hangs": 1.5, "good": 20.0}
    results = check([sys.executable, str(script)], limits, 60, out, {"rehearsal": True})
    assert json.loads(out.read_text()) == results
    ended = {row["part"]: (row["state"], row["reason"]) for row in results["parts"]}
    assert ended == {
        "dies": ("failed", "killed by SIGSEGV"),
        "fails": ("failed", "OutOfMemoryError: CUDA out of memory"),
        "breaks": ("failed", "ended with 1: no kernel image is available"),
        "hangs": ("out of time", "not done after 2 s"),
        "good": ("done", None),
    }
    found = {part: each.get("rows") for part, each in results["benchmarks"].items()}
    assert found == {"dies": [1], "fails": [1], "breaks": None, "hangs": [1], "good": [1]}
    assert results["ratios"] == {"graphs_rollout_x": 2.0}
    assert gone(int(child.read_text())), "what a part has started ends with it"


def gone(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    deadline = time.monotonic() + 5
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


def test_what_there_is_no_time_for_is_named(tmp_path: Path) -> None:
    results = check(["nobody"], {"graphs": 60.0, "head": 30.0}, 6, tmp_path / "out.json", {})
    assert [(row["part"], row["state"], row["reason"]) for row in results["parts"]] == [
        (name, "left out", "1 s of 6 s were left") for name in ("graphs", "head")
    ]
    assert {row["verdict"] for row in results["settings"]} == {"not measured"}


@pytest.mark.parametrize(
    ("gain", "error", "warnings", "verdict"),
    [
        (1.5, 0.01, [], "pays"),
        (1.05, 0.01, [], "does not pay"),
        (1.5, 0.05, [], "does not pay"),
        (1.5, 0.01, ["rollouts run without CUDA graphs"], "does not pay"),
    ],
)
def test_a_setting_pays_where_it_gains_and_rounds_little(
    gain: float, error: float, warnings: list[str], verdict: str
) -> None:
    found = {
        "graphs": {
            "rows": [{}, {"greatest_difference": error}],
            "half_the_rows": {"greatest_difference": 0.02},
            "warnings": warnings,
        }
    }
    row = next(r for r in decided({"graphs_rollout_smollm2": gain}, found) if r["setting"] == "execution.graphs")
    assert row["verdict"] == verdict


def test_the_figures_of_every_part_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """But of those that start programs or compile."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setitem(LARGE, "nano", gpu_parts.NANO)
    monkeypatch.setattr("perf.utilisation.RESPONSES", (4, 8))
    monkeypatch.setattr("perf.utilisation.PROMPTS", (3, 5))
    assert gpu_parts.PARTS.keys() == LIMITS.keys()
    found: dict[str, dict[str, Any]] = {}
    for name in LIMITS.keys() - {"tests", "compile", "flash", "iteration", "utilisation-1b"}:
        for each in gpu_parts.results(name):
            json.dumps(each)
            found[name] = dict(each)
    ratios = {name: value for each in found.values() for name, value in each.get("ratios", {}).items()}
    assert {row["setting"] for row in decided(ratios, found) if row["verdict"] == "not measured"} == {
        "execution.compile",
        "execution.packing with flash_attention_2",
    }
    assert found["graphs"]["rows"][1]["share_drawn_alike"] == 1
    assert found["machine"]["machine"]["torch"] == torch.__version__
    for size in ("smollm2", "8b"):
        rows = found[f"utilisation-{size}"]["rows"]
        assert [row["work"] for row in rows] == ["sft", "score", "update", "rollout"]
        assert all(row["planned_bytes"] > 0 and row["planned_seconds"] > 0 for row in rows)
    reward = found["head"]["reward"]
    # A CPU rounds nothing to TensorFloat-32.
    assert 0 < reward["head_tf32"] == reward["head_float32"] < reward["bfloat16"]
    assert 0 < reward["tf32"] == reward["float32"] < reward["bfloat16"]


def test_what_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_check.missing() is None
    monkeypatch.setattr(gpu_check, "find_spec", lambda name: None if name == "pydantic" else object())
    assert f"{sys.executable} has no pydantic, without which" in (gpu_check.missing() or "")


@pytest.mark.slow
def test_a_rehearsal_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu-check.json"
    monkeypatch.setattr("sys.argv", ["gpu_check.py", "--rehearse", "--out", str(out), "--budget", "600"])
    gpu_check.main()
    said = capsys.readouterr()
    results = json.loads(said.out)
    assert results == json.loads(out.read_text())
    assert "rehearsal on the CPU" in said.err
    assert results["rehearsal"]
    assert {"machine", "date", "ratios", "benchmarks"} <= results.keys()
    assert {row["part"] for row in results["parts"] if row["state"] != "done"} <= {"flash"}
    assert len(results["parts"]) == len(LIMITS)
