"""A check that runs once and unwatched: whatever a part does, the others are measured."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dpr_core.config.execution import ExecutionConfig
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
    limits = {"dies": 20.0, "fails": 20.0, "breaks": 20.0, "hangs": 5.0, "good": 20.0}
    results = check([sys.executable, str(script)], limits, 60, out, {"rehearsal": True})
    assert json.loads(out.read_text()) == results
    ended = {row["part"]: (row["state"], row["reason"]) for row in results["parts"]}
    assert ended == {
        "dies": ("failed", "killed by SIGSEGV"),
        "fails": ("failed", "OutOfMemoryError: CUDA out of memory"),
        "breaks": ("failed", "ended with 1: no kernel image is available"),
        "hangs": ("out of time", "not done after 5 s"),
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


def test_after_a_process_that_cannot_be_ended_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, spared = tmp_path / "fake.py", []
    script.write_text(FAKE)
    monkeypatch.setenv("CHILD", str(tmp_path / "child"))
    monkeypatch.setattr(gpu_check, "ENDING", 0.2)
    with monkeypatch.context() as patched:
        # As if the kernel held it.
        patched.setattr("os.killpg", lambda group, _: spared.append(group))
        results = check([sys.executable, str(script)], {"hangs": 1.0, "good": 20.0}, 60, None, {})
    os.killpg(spared[0], signal.SIGKILL)
    os.waitpid(spared[0], 0)
    assert [(row["part"], row["state"], row["reason"]) for row in results["parts"]] == [
        ("hangs", "stuck", "not done after 1 s, and not ended by SIGKILL 0 s later"),
        ("good", "left out", "hangs could not be ended, and may hold the GPU"),
    ]


GAINS = {
    "graphs_rollout_smollm2": 1.5,
    "tf32_head_sft_smollm2": 1.5,
    "tf32_reward_smollm2": 2.0,
    "fused_adam_sft_smollm2": 1.0,
}
FOUND: dict[str, dict[str, Any]] = {
    "graphs": {
        "rows": [{"setting": "off", "log_prob_gap": 0.01}, {"setting": "on", "log_prob_gap": 0.015}],
        "warnings": [],
    },
    "head": {"reward": {"head_tf32": 0.01, "tf32": 0.02, "bfloat16": 0.06}},
}


def verdict(setting: str, ratios: dict[str, float], found: dict[str, dict[str, Any]], rehearsal: bool = False) -> str:
    row = next(each for each in decided(ratios, found, rehearsal) if each["setting"] == setting)
    return str(row["verdict"])


def test_a_setting_pays_where_it_gains_and_rounds_little() -> None:
    verdicts = {row["setting"]: row["verdict"] for row in decided(GAINS, FOUND)}
    assert verdicts == {
        "execution.graphs": "pays",
        "execution.tf32_head": "pays",
        "reward.arithmetic: tf32": "pays",
        "execution.compile": "not measured",
        "execution.fused_adam": "does not pay",
        "execution.packing with flash_attention_2": "not measured",
    }
    assert verdict("execution.graphs", {**GAINS, "graphs_rollout_smollm2": 1.05}, FOUND) == "does not pay"
    off, on = FOUND["graphs"]["rows"]
    for worse in (
        {"rows": [off, {**on, "log_prob_gap": 0.03}]},
        {"rows": [off, {**on, "log_prob_gap": float("nan")}]},
        {"warnings": ["rollouts run without CUDA graphs"]},
    ):
        assert verdict("execution.graphs", GAINS, {"graphs": {**FOUND["graphs"], **worse}}) == "does not pay"
    rounded = {"head": {"reward": {**FOUND["head"]["reward"], "head_tf32": 0.03}}}
    assert verdict("execution.tf32_head", GAINS, rounded) == "does not pay"


def test_nothing_is_said_of_what_was_not_measured() -> None:
    """A part that stops early has a gain, and no error or no bound."""
    off, on = FOUND["graphs"]["rows"]
    for rows in ([], [off], [off, {"setting": "on"}], [{"setting": "off"}, on]):
        assert verdict("execution.graphs", GAINS, {"graphs": {"rows": rows}}) == "not measured"
    for setting in ("execution.graphs", "execution.tf32_head", "reward.arithmetic: tf32"):
        assert verdict(setting, GAINS, {}) == verdict(setting, {}, FOUND) == "not measured"
    no_bound = {"head": {"reward": {"head_tf32": 0.01}}}
    assert verdict("execution.tf32_head", GAINS, no_bound) == "not measured"


def test_nothing_pays_in_a_rehearsal(tmp_path: Path) -> None:
    assert {row["verdict"] for row in decided(GAINS, FOUND, rehearsal=True)} == {"rehearsed", "not measured"}
    script = tmp_path / "fake.py"
    script.write_text("import json, sys; json.dump({'ratios': {'compile_sft_toy': 9.0}}, open(sys.argv[2], 'w'))")
    known = {"rehearsal": True, "machine": {"commit": "abc", "gpu": None}}
    results = check([sys.executable, str(script)], {"compile": 20.0}, 60, None, known)
    assert {row["verdict"] for row in results["settings"] if row["gain"]} == {"rehearsed"}
    assert results["machine"] == known["machine"], "it is known though the part about it was left out"


def test_a_log_prob_that_is_wrong_anywhere_shows_in_the_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setitem(LARGE, "nano", gpu_parts.NANO)
    bench = gpu_parts.scale().bench("toy", ExecutionConfig())
    bench.to_draw = bench.to_draw[:2]
    drawn: Any = bench.rollout().run()
    plain = gpu_parts.log_prob_gap(bench, drawn)
    first, *others = drawn
    assert 0 <= plain < 0.1
    off = replace(first, log_probs=(*first.log_probs[:-1], first.log_probs[-1] - 1))
    assert gpu_parts.log_prob_gap(bench, [off, *others]) > 0.9


@pytest.mark.slow
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
def test_a_rehearsal_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "gpu-check.json"
    command = [sys.executable, gpu_check.__file__, "--rehearse", "--out", str(out), "--budget", "600"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=660, check=True)
    results = json.loads(done.stdout)
    assert results == json.loads(out.read_text())
    assert "rehearsal on the CPU" in done.stderr
    assert results["rehearsal"]
    assert {"machine", "date", "ratios", "benchmarks"} <= results.keys()
    assert {"date", "commit", "model", "gpu", "torch"} <= results["machine"].keys()
    assert {row["verdict"] for row in results["settings"]} <= {"rehearsed", "not measured"}
    assert {row["part"] for row in results["parts"] if row["state"] != "done"} <= {"flash"}
    assert len(results["parts"]) == len(LIMITS)
