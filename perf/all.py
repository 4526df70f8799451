"""The benchmark suite: speed ratios beside other programs, scaling and utilisation, in one JSON file with plots.

    python perf/all.py --out bench.json
    python perf/all.py --real --out bench-real.json
    python perf/all.py --markdown bench.json

Needs TRL: `make bench` and `make bench-real` run it in an environment that has it. The second is of the shape of
SmolLM2, in float32 and, where the processor has it, bfloat16. Each takes about an hour of one core; how
many minutes each benchmark took is in the JSON. With --only the file keeps what it has of the others. With --markdown
nothing is run: the tables of an earlier file are printed.
"""

import argparse
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot

HERE = Path(__file__).parent
SCRIPTS = {name: [name] for name in ("sft", "scoring", "rollouts", "rl", "orchestration", "growth", "utilisation")}
"""A name in the results, and the script and its options."""
_SHAPE = ["--sizes", "smollm2", "--dtype"]
REAL = {
    "real_sft": ["sft", "--batch", "8", "--steps", "8", "--repeats", "1", *_SHAPE],
    "real_scoring": ["scoring", "--sequences", "32", "--repeats", "1", *_SHAPE],
    "real_rollouts_64": [
        "rollouts",
        "--rows",
        "64",
        "--prompts",
        "128",
        "--repeats",
        "1",
        "--beside",
        "generate",
        "vllm",
        *_SHAPE,
    ],
    "real_rollouts_8": ["rollouts", "--rows", "8", "--prompts", "16", "--beside", "generate", "vllm", *_SHAPE],
    "real_rl": ["rl", "--prompts", "3", "--samples", "4", *_SHAPE],
    "real_hours": ["planned"],
    "growth": ["growth", "--repeats", "1"],
}


def plot(ratios: Mapping[str, float], path: Path) -> None:
    """Bars, where 1 is as fast (or as small) as the other."""
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.3 * len(ratios)), layout="constrained")
    axes.barh(list(ratios), list(ratios.values()))
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("times as good as the other")
    figure.savefig(path)


def more_is_better(ratios: Mapping[str, float]) -> dict[str, float]:
    """All but what orchestration takes over the bare function, and shares of the machine, where 1 is not as fast as
    another but as fast as can be."""
    return {
        name: value
        for name, value in ratios.items()
        if ("_vs_" in name or "_over_" in name) and not name.startswith("orchestration_")
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of texts and numbers; lists, such as single repeats, stay in the JSON."""
    columns = dict.fromkeys(
        name for row in rows for name, value in row.items() if not isinstance(value, (list, Mapping))
    )
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(_cell(row.get(name)) for name in columns)} |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(results: Mapping[str, Any]) -> str:
    """All that a file of results holds, as tables."""
    parts = [", ".join(f"{name}: {_cell(value)}" for name, value in results["machine"].items())]
    parts.append(table([{"ratio": name, "value": value} for name, value in results["ratios"].items()]))
    for name, found in results["benchmarks"].items():
        parts.append(f"## {name}")
        lists = {what: rows for what, rows in found.items() if isinstance(rows, list)}
        for what, rows in lists.items():
            parts += [f"### {what}"] * (len(lists) > 1) + [table(rows)]
    return "\n\n".join(parts)


def dtypes() -> list[str]:
    """In which the processor multiplies matrices."""
    account = Path("/proc/cpuinfo")
    flags = account.read_text() if account.exists() else ""
    return ["float32", *["bfloat16"] * bool(re.search(r"\b(avx512_bf16|amx_bf16)\b", flags))]


def chosen(real: bool, only: Sequence[str] | None = None) -> dict[str, list[str]]:
    """A whole suite, or some benchmarks of both."""
    at_real_shape = {name: command + dtypes() * (command[-1] == "--dtype") for name, command in REAL.items()}
    mine, other = (at_real_shape, SCRIPTS) if real else (SCRIPTS, at_real_shape)
    return {name: mine.get(name) or other[name] for name in only or mine}


def run(suite: Mapping[str, Sequence[str]], out: Path, onto: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One script after the other, onto earlier results. One that fails leaves the others, and fails the suite in the
    end."""
    results = {name: dict((onto or {}).get(name, {})) for name in ("ratios", "machine", "benchmarks")}
    failed: list[str] = []
    also = {"growth": ["--plot", str(out.with_name(f"{out.stem}-growth.png"))], "planned": ["--of", str(out)]}
    for name, (script, *options) in suite.items():
        print(f"{name} ...", file=sys.stderr)
        started = time.monotonic()
        command = [sys.executable, str(HERE / f"{script}.py"), *options, "--json", *also.get(script, [])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            failed.append(name)
            continue
        found = {**json.loads(done.stdout), "minutes": (time.monotonic() - started) / 60}
        print(f"{name} took {found['minutes']:.1f} minutes", file=sys.stderr)
        results["ratios"] |= found.get("ratios", {})
        results["machine"] |= found.get("machine", {})
        results["benchmarks"][name] = found
        out.write_text(json.dumps(results, indent=2) + "\n")
    if failed:
        sys.exit(f"{', '.join(failed)} failed (see above); the others are in {out}")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("bench.json"), help="the plots go beside it, as .png and -growth.png"
    )
    parser.add_argument("--real", action="store_true", help="at the shape of a real model")
    parser.add_argument("--only", nargs="+", choices=[*SCRIPTS, *REAL], metavar="NAME", help="some of either suite")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="print the tables of this file and run nothing")
    arguments = parser.parse_args()
    if arguments.markdown:
        print(markdown(json.loads(arguments.markdown.read_text())))
        return
    # An exit ends the script that runs, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    earlier = json.loads(arguments.out.read_text()) if arguments.only and arguments.out.exists() else None
    results = run(chosen(arguments.real, arguments.only), arguments.out, earlier)
    if shown := more_is_better(results["ratios"]):
        plot(shown, arguments.out.with_suffix(".png"))
    print(json.dumps(results["ratios"], indent=2))


if __name__ == "__main__":
    main()
