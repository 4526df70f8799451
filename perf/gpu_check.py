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
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, AnyStr

HERE = Path(__file__).parent
BUDGET = 480.0
PROBING = 180
"""Seconds to import everything, the first time."""
ENDING = 5.0
"""Seconds of the budget that are left for what ends it all, a process that was killed among it."""
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
    """`done`, `failed`, `out of time`, `stuck` where SIGKILL has not ended it, or `left out`."""
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
        if stuck := next((each.part for each in outcomes if each.state == "stuck"), None):
            outcomes.append(Outcome(part, "left out", reason=f"{stuck} could not be ended, and may hold the GPU"))
        elif left < min(limit, 20) / 2:
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
        if process.poll() is None:
            state, reason = "stuck", f"{reason}, and not ended by SIGKILL {ENDING:.0f} s later"
        found = json.loads(into.read_text()) if into.exists() else {}
    return Outcome(part, state, time.monotonic() - began, found.pop("failed", None) or reason), found


@contextlib.contextmanager
def ended(process: "subprocess.Popen[AnyStr]") -> Iterator["subprocess.Popen[AnyStr]"]:
    """Whatever happens, neither it nor what it has started outlives this, unless the kernel does not let go of it."""
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(ENDING)


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
        **known,
        "machine": {**known.get("machine", {}), **found.get("machine", {}).get("machine", {})},
        "ratios": ratios,
        "settings": decided(ratios, found, bool(known.get("rehearsal"))),
        "parts": [asdict(outcome) for outcome in outcomes],
        "benchmarks": {part: {k: v for k, v in each.items() if k != "machine"} for part, each in found.items()},
    }
    if out:
        whole = out.with_name(f".{out.name}.new")
        whole.write_text(json.dumps(results, indent=2) + "\n")
        whole.replace(out)
    return results


def decided(
    ratios: Mapping[str, float], found: Mapping[str, Mapping[str, Any]], rehearsal: bool = False
) -> list[dict[str, Any]]:
    """Whether a setting pays: what it gains, and where it rounds by how much, beside what was asked of it. Nothing is
    said of one of which a figure is missing."""
    reward, graphs = found.get("head", {}).get("reward", {}), found.get("graphs", {})
    gaps = {row.get("setting"): row.get("log_prob_gap") for row in graphs.get("rows", [])}
    rules: list[tuple[str, str, float, float | None, float | None]] = [
        ("execution.graphs", "graphs_rollout_", 1.1, gaps.get("on"), times(2, gaps.get("off"))),
        ("execution.tf32_head", "tf32_head_sft_", 1.05, reward.get("head_tf32"), times(1 / 3, reward.get("bfloat16"))),
        ("reward.arithmetic: tf32", "tf32_reward_", 1.5, reward.get("tf32"), 0.1),
        ("execution.compile", "compile_sft_", 1.1, None, None),
        ("execution.fused_adam", "fused_adam_sft_", 1.02, None, None),
        ("execution.packing with flash_attention_2", "flash_sft_", 1.1, None, None),
    ]
    rows = []
    for setting, name, least, error, bound in rules:
        gain = next((value for ratio, value in ratios.items() if ratio.startswith(name)), None)
        if gain is None or (setting in ROUNDING and (error is None or bound is None)):
            verdict = "not measured"
        elif rehearsal:
            verdict = "rehearsed"
        else:
            exact = error is None or bound is None or error <= bound
            given_up = setting == "execution.graphs" and graphs.get("warnings")
            verdict = "pays" if gain >= least and exact and not given_up else "does not pay"
        row = {"setting": setting, "verdict": verdict, "gain": gain, "least_gain": least, "error": error}
        rows.append({**row, "bound": bound})
    return rows


ROUNDING = ("execution.graphs", "execution.tf32_head", "reward.arithmetic: tf32")
"""Settings whose error is held against a bound."""


def times(factor: float, of: float | None) -> float | None:
    return None if of is None else factor * of


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


def gpu_seen() -> str | None:
    """Its name. Asked in another process, since a GPU that was looked at is partly taken. What cannot be imported is
    told now, and not by every part."""
    asked = (
        "import torch; from perf import gpu_parts; print(torch.cuda.is_available() and torch.cuda.get_device_name())"
    )
    pipe = subprocess.PIPE
    with ended(
        subprocess.Popen(
            [sys.executable, "-c", asked], cwd=HERE.parent, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )
    ) as process:
        try:
            said, errors = process.communicate(timeout=PROBING)
        except subprocess.TimeoutExpired:
            raise SystemExit(
                f"error: {sys.executable} has not imported torch and this program in {PROBING} s"
            ) from None
    if process.returncode:
        lines = errors.strip().splitlines() or [f"it ended with {process.returncode}"]
        raise SystemExit(f"error: nothing can be measured with {sys.executable}: {lines[-1][:500]}")
    name = said.strip().splitlines()[-1]
    return None if name == "False" else name


def machine() -> dict[str, Any]:
    """What is known of it without torch, under the names of `side_by_side.machine`, which a bare machine cannot
    import."""
    account = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", account.read_text() if account.exists() else "")
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty=+", "--exclude=*"]
    commit = ""
    with contextlib.suppress(OSError):
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    model = names[0].strip() if names else platform.processor()
    return {"date": date.today().isoformat(), "commit": commit or None, "model": model}


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
    # An interrupt ends what is at work, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    gpu = gpu_seen()
    rehearsal = gpu is None or given.rehearse
    if rehearsal:
        print("This is a rehearsal on the CPU at toy size; its figures mean nothing.", file=sys.stderr)
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(HERE / "gpu_check.py"), "--part"]
    known = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rehearsal": rehearsal,
        "machine": machine() | {"gpu": None if rehearsal else gpu},
    }
    limits = {name: limit for name, limit in LIMITS.items() if name in given.only}
    budget = given.budget - (time.monotonic() - started)
    print(json.dumps(check(command, limits, budget, given.out, known), indent=2))


if __name__ == "__main__":
    main()
