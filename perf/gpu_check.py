"""GPU check: in one command, what a GPU gains by each setting, reaches and needs, as one JSON document.

    python perf/gpu_check.py --out gpu-check.json
    python perf/gpu_check.py --rehearse

Each part is a process of its own with a time limit, most important first. One that fails, hangs or runs out of memory
is reported with its reason, and the next goes on; what there is no time for is named. The file is written after every
part. Without a GPU, and with --rehearse, everything is done on the CPU at toy size: such figures mean nothing.

Needs torch, transformers, accelerate and pydantic, and for some parts peft, pytest, flash_attn and TRL; no network.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BUDGET = 480.0
PROBING = 180
"""Seconds to import everything, the first time."""
ENDING = 5.0
"""Seconds of the budget that are left for what ends it all."""
NEEDED = ("torch", "transformers", "accelerate", "pydantic", "tokenizers", "safetensors", "yaml")

LIMITS: dict[str, float] = {
    "machine": 60,
    "tests": 75,
    "graphs": 75,
    "head": 75,
    "utilisation-smollm2": 60,
    "adam": 30,
    "reward": 30,
    "flash": 45,
    "utilisation-8b": 110,
    "iteration": 60,
    "utilisation-1b": 60,
    "compile": 120,
}
"""Seconds of each part at most, most important first."""


@dataclass
class Outcome:
    """How a part ended."""

    part: str
    state: str
    """`done`, `failed`, `out of time`, or `left out`."""
    seconds: float = 0.0
    reason: str | None = None


def check(
    command: Sequence[str], limits: Mapping[str, float], budget: float, out: Path | None, known: Mapping[str, Any]
) -> dict[str, Any]:
    """Run `command` with a part's name and a file to write to, for each part in turn."""
    started = time.monotonic()
    outcomes: list[Outcome] = []
    found: dict[str, Any] = {}
    results = written(known, outcomes, found, out)
    for part, limit in limits.items():
        left = budget - ENDING - (time.monotonic() - started)
        if left < min(limit, 20) / 2:
            outcomes.append(Outcome(part, "left out", reason=f"{max(left, 0):.0f} s of {budget:.0f} s were left"))
        else:
            print(f"{part} ...", file=sys.stderr, flush=True)
            outcome, found[part] = alone([*command, part], part, min(limit, left))
            outcomes.append(outcome)
            print(f"  {outcome.state} in {outcome.seconds:.0f} s {outcome.reason or ''}".rstrip(), file=sys.stderr)
        results = written(known, outcomes, found, out)
    return results


def alone(command: Sequence[str], part: str, limit: float) -> tuple[Outcome, dict[str, Any]]:
    """A part in a process of its own, and what it had written when it ended or was ended."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        into, said = Path(folder, "found.json"), Path(folder, "said")
        with (
            said.open("wb") as output,
            ended(
                subprocess.Popen([*command, str(into)], stdout=output, stderr=output, start_new_session=True)
            ) as process,
        ):
            try:
                code = process.wait(limit)
                state, reason = ("done", None) if code == 0 else ("failed", reason_of(code, said))
            except subprocess.TimeoutExpired:
                state, reason = "out of time", f"not done after {limit:.0f} s"
        found = json.loads(into.read_text()) if into.exists() else {}
    return Outcome(part, state, time.monotonic() - began, found.pop("failed", None) or reason), found


@contextlib.contextmanager
def ended(process: "subprocess.Popen[bytes]") -> Iterator["subprocess.Popen[bytes]"]:
    """Whatever happens, neither it nor what it has started outlives this."""
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def reason_of(code: int, said: Path) -> str:
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    lines = [line for line in said.read_text(errors="replace").splitlines() if line.strip()]
    return f"{how}: {lines[-1][:500]}" if lines else how


def written(
    known: Mapping[str, Any], outcomes: Sequence[Outcome], found: Mapping[str, Mapping[str, Any]], out: Path | None
) -> dict[str, Any]:
    """All that is known so far."""
    ratios = {name: value for each in found.values() for name, value in each.get("ratios", {}).items()}
    results = {
        "machine": found.get("machine", {}).get("machine", {}),
        **known,
        "ratios": ratios,
        "settings": decided(ratios, found),
        "parts": [asdict(outcome) for outcome in outcomes],
        "benchmarks": {part: {k: v for k, v in each.items() if k != "machine"} for part, each in found.items()},
    }
    if out:
        whole = out.with_name(f".{out.name}.new")
        whole.write_text(json.dumps(results, indent=2) + "\n")
        whole.replace(out)
    return results


def decided(ratios: Mapping[str, float], found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Whether a setting pays: what it gains, and where it rounds by how much, beside what was asked of it."""
    reward, graphs = found.get("head", {}).get("reward", {}), found.get("graphs", {})
    half = graphs.get("half_the_rows", {}).get("greatest_difference")
    apart = next((row["greatest_difference"] for row in graphs.get("rows", []) if "greatest_difference" in row), None)
    rules: list[tuple[str, str, float, float | None, float | None]] = [
        ("execution.graphs", "graphs_rollout_", 1.1, apart, None if half is None else 2 * half),
        ("execution.tf32_head", "tf32_head_sft_", 1.05, reward.get("head_tf32"), part(reward.get("bfloat16"), 1 / 3)),
        ("reward.arithmetic: tf32", "tf32_reward_", 1.5, reward.get("tf32"), 0.1),
        ("execution.compile", "compile_sft_", 1.1, None, None),
        ("execution.fused_adam", "fused_adam_sft_", 1.02, None, None),
        ("execution.packing with flash_attention_2", "flash_sft_", 1.1, None, None),
    ]
    rows = []
    for setting, name, least, error, bound in rules:
        gain = next((value for ratio, value in ratios.items() if ratio.startswith(name)), None)
        given_up = setting == "execution.graphs" and bool(graphs.get("warnings"))
        exact = error is not None and bound is not None and error <= bound if setting in ROUNDING else True
        said = (
            "not measured" if gain is None else "pays" if gain >= least and exact and not given_up else "does not pay"
        )
        row = {"setting": setting, "verdict": said, "gain": gain, "least_gain": least, "error": error, "bound": bound}
        rows.append(row)
    return rows


ROUNDING = ("execution.graphs", "execution.tf32_head", "reward.arithmetic: tf32")
"""Settings whose error is held against a bound."""


def part(of: float | None, share: float) -> float | None:
    return None if of is None else share * of


def measure(name: str, into: Path) -> None:
    """A part, in the process that was started for it."""
    sys.path.insert(0, str(HERE.parent))
    whole = into.with_suffix(".new")
    found: dict[str, Any] = {}

    def write() -> None:
        whole.write_text(json.dumps(found))
        whole.replace(into)

    try:
        from perf import gpu_parts

        for each in gpu_parts.results(name):
            found.update(each)
            write()
    except Exception as error:
        found["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        write()
        raise SystemExit(1) from error


def missing() -> str | None:
    """A sentence about packages that are not here."""
    absent = [name for name in NEEDED if find_spec(name) is None]
    if not absent:
        return None
    return (
        f"{sys.executable} has no {', no '.join(absent)}, without which nothing can be measured; install it there, or "
        "put a folder that has it on PYTHONPATH"
    )


def sees_gpu() -> bool:
    """Asked in another process, since a GPU that was looked at is partly taken. What cannot be imported is told now,
    and not by every part."""
    asked = "import torch; from perf import gpu_parts; raise SystemExit(0 if torch.cuda.is_available() else 3)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", asked], cwd=HERE.parent, timeout=PROBING, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired:
        raise SystemExit(f"error: {sys.executable} has not imported torch and this program in {PROBING} s") from None
    if done.returncode not in (0, 3):
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        raise SystemExit(f"error: nothing can be measured with {sys.executable}: {lines[-1][:500]}")
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a file that is written after every part")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds, of all parts together")
    parser.add_argument(
        "--only", nargs="+", choices=LIMITS, default=list(LIMITS), metavar="PART", help=", ".join(LIMITS)
    )
    parser.add_argument("--rehearse", action="store_true", help="on the CPU at toy size, though there be a GPU")
    parser.add_argument("--part", nargs=2, metavar=("PART", "FILE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        measure(given.part[0], Path(given.part[1]))
        return
    if said := missing():
        parser.exit(2, f"error: {said}\n")
    started = time.monotonic()
    rehearsal = not sees_gpu() or given.rehearse
    if rehearsal:
        print("This is a rehearsal on the CPU at toy size; its figures mean nothing.", file=sys.stderr)
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    # An interrupt ends the part at work, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    command = [sys.executable, str(HERE / "gpu_check.py"), "--part"]
    known = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "rehearsal": rehearsal}
    limits = {name: limit for name, limit in LIMITS.items() if name in given.only}
    budget = given.budget - (time.monotonic() - started)
    print(json.dumps(check(command, limits, budget, given.out, known), indent=2))


if __name__ == "__main__":
    main()
