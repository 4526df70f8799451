"""The page of benchmarks: a committed file of results for each machine, and docs/benchmarks.md with its plot from the
newest of them.

    python perf/publish.py bench.json bench-real.json
    python perf/publish.py

The first keeps what these files hold in perf/results, under the name of the machine that they were measured on, beside
what was measured there before, and makes the page; the second makes the page alone. A file of the GPU check is on no
page.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot

from perf.all import REAL, SCRIPTS, more_is_better

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
TARGETS = {
    "sft_vs_trl_tuned_smollm2": 1.6,
    "sft_vs_trl_grouped_smollm2": 1.15,
    "score_vs_plain_smollm2": 1.8,
    "score_memory_plain_over_ours_smollm2": 2.0,
    "rollout_vs_generate_smollm2_64": 1.5,
    "rollout_vs_generate_smollm2_8": 1.1,
    "rl_vs_trl_grpo_smollm2": 1.8,
}
"""On one core."""
TARGETS |= {f"{name}_bfloat16": value for name, value in TARGETS.items()}

Results = Mapping[str, Any]


def file_name(machine: Mapping[str, Any]) -> str:
    """Processor, cores and GPU."""
    words = [machine["model"], f"{machine['cores']} cores", machine.get("gpu") or ""]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-") + ".json"


def merged(parts: Sequence[Results]) -> dict[str, Any]:
    """What later files say of the same is kept; the date is the last one."""
    whole: dict[str, Any] = {"machine": {}, "ratios": {}, "benchmarks": {}}
    for part in parts:
        for name, into in whole.items():
            into |= part[name]
    if len(names := {file_name(part["machine"]) for part in parts}) > 1:
        raise SystemExit(f"error: these were measured on several machines: {', '.join(sorted(names))}; publish one's")
    return whole


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def kept() -> dict[Path, dict[str, Any]]:
    """The files of the two suites."""
    found = {path: read(path) for path in sorted(RESULTS.glob("*.json"))}
    return {
        path: each for path, each in found.items() if {*SCRIPTS, *REAL} >= each.get("benchmarks", {}).keys() > set()
    }


def newest() -> dict[str, Any]:
    return max(kept().values(), key=lambda results: results["machine"]["date"])


def page(results: Results) -> str:
    machine, benchmarks = results["machine"], results["benchmarks"]
    commits = dict.fromkeys(found.get("machine", machine)["commit"] for found in benchmarks.values())
    parts = [
        "# Benchmarks",
        f"Measured on {_words(machine, commits)}. {_counted(results['ratios'])} "
        "What is compared with what, and how to read it: [performance](performance.md). "
        "This page is made by `python perf/publish.py` from the newest file in `perf/results`.",
        "![How many times as good as the other](images/benchmarks.png)",
        *_minutes(benchmarks),
        "## Beside other programs",
        "How many times as many tokens a second ours does as the other, or as much memory as ours the other takes.",
        _table(["ratio", "measured", "target", ""], _ratios(results["ratios"])),
    ]
    if rows := [
        row for name, found in benchmarks.items() if name.startswith("real_") for row in _programs(name, found)
    ]:
        parts += ["## At the shape of SmolLM2", "One core; memory of the whole process at its peak."]
        parts.append(_table(["", "program", "tokens/s", "peak, MB"], rows))
    if hours := benchmarks.get("real_hours"):
        parts += [
            "## Planned and measured",
            "What `dpr plan` counts, at the limits of one core that were measured in the same run "
            f"({_limits(hours['limits'])}), beside what it took. Their ratio is the utilisation. A rollout reads the "
            "weights once for each token of all rows: its share of the bandwidth stands beside that of the operations.",
            _table(
                ["", "program", "tokens/s", "planned, s", "measured, s", "utilisation", "bandwidth", "operations"],
                [_hours(row) for row in hours["rows"]],
            ),
        ]
    if growth := benchmarks.get("growth"):
        parts += [
            "## Growth",
            "Slopes between logarithms over the last three points: 1 is linear growth, 0 is none. Processes share "
            f"{machine['cores']} cores; their time is what all take of them, and memory that of the largest.",
            _table(["work", "grows with", "from", "to", "time", "memory"], _growth(growth)),
        ]
    return "\n\n".join(parts) + "\n"


def _words(machine: Mapping[str, Any], commits: Iterable[str]) -> str:
    versions = ", ".join(
        f"{name} {machine[name]}" for name in ("python", "torch", "transformers", "trl") if name in machine
    )
    gpu = f", {machine['gpu']}" if machine.get("gpu") else ""
    return (
        f"{machine['model']} ({machine['cores']} cores, {machine['memory_gigabytes']:.0f} GB{gpu}) "
        f"on {machine['date']}, at commit {', '.join(f'`{commit}`' for commit in commits)}, with {versions}"
    )


def _minutes(benchmarks: Mapping[str, Results]) -> list[str]:
    took = {name: found["minutes"] for name, found in benchmarks.items() if "minutes" in found}
    each = ", ".join(f"`{name}` {minutes:.0f}" for name, minutes in took.items())
    return [f"Minutes: {each}; {sum(took.values()):.0f} together."] if took else []


def _counted(ratios: Mapping[str, float]) -> str:
    measured = [_is_met(name, ratios[name]) for name in TARGETS if name in ratios]
    return f"Targets met: {sum(measured)} of {len(TARGETS)}; not measured: {len(TARGETS) - len(measured)}."


def _is_met(name: str, value: float) -> bool:
    return value >= TARGETS.get(name, 0)


def _ratios(ratios: Mapping[str, float]) -> list[list[str]]:
    """Those with a target first, whether they were measured or not."""
    rows = []
    for name, wanted in TARGETS.items():
        value = ratios.get(name)
        found = "not measured" if value is None else "met" if _is_met(name, value) else "not met"
        rows.append([f"`{name}`", "" if value is None else f"{value:.2f}", f"{wanted:g}", found])
    others = {name: value for name, value in more_is_better(ratios).items() if name not in TARGETS}
    return rows + [[f"`{name}`", f"{value:.2f}", "", ""] for name, value in others.items()]


def _programs(name: str, found: Results) -> list[list[str]]:
    called = name.removeprefix("real_").replace("_", ", ") + (" rows" if "rollouts" in name else "")
    rows = found["rows"] if "settings" in found else []
    return [
        [called, row["program"], f"{row['tokens_per_second']:,.0f}", f"{row['peak_megabytes']:,.0f}"] for row in rows
    ]


def _limits(limits: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{limit['type']} {limit['measured']:.3g} {limit['limit']}" for limit in limits)


def _hours(row: Mapping[str, Any]) -> list[str]:
    seconds = [f"{row[name]:,.1f}" for name in ("planned_seconds", "measured_seconds")]
    shares = [
        f"{100 * row[name]:.0f}%" if name in row else ""
        for name in ("utilisation", "share_of_bandwidth", "share_of_operations")
    ]
    called = row["benchmark"].removeprefix("real_").replace("_", ", ")
    return [called, row["program"], f"{row['tokens_per_second']:,.0f}", *seconds, *shares]


def _growth(growth: Results) -> list[list[str]]:
    ends: dict[tuple[str, str], list[int]] = {}
    for row in growth["rows"]:
        ends.setdefault((row["work"], row["axis"]), []).append(row[row["axis"]])
    return [
        [
            each["work"],
            each["axis"],
            f"{along[0]:,}",
            f"{along[-1]:,}",
            f"{each['seconds']:.2f}",
            f"{each['peak_bytes']:.2f}",
        ]
        for each in growth["exponents"]
        for along in [ends[each["work"], each["axis"]]]
    ]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def draw(ratios: Mapping[str, float], path: Path) -> None:
    """Bars of what has a target, and the target as a mark; without any target, of all."""
    shown = more_is_better(ratios)
    shown = {name: value for name, value in shown.items() if name in TARGETS} or shown
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.3 * len(shown)), layout="constrained")
    axes.barh(list(shown), list(shown.values()), color=["C0" if _is_met(name, shown[name]) else "C1" for name in shown])
    for place, name in enumerate(shown):
        if wanted := TARGETS.get(name):
            axes.plot([wanted, wanted], [place - 0.4, place + 0.4], color="black")
    axes.invert_yaxis()
    axes.set_xlabel("times as good as the other; the mark is the target")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="what perf/all.py wrote")
    arguments = parser.parse_args()
    if arguments.files:
        try:
            parts = [read(file) for file in arguments.files]
        except (OSError, ValueError) as error:
            parser.error(f"these are no results of perf/all.py: {error}")
        into = RESULTS / file_name(parts[0]["machine"])
        results = merged([read(file) for file in [into] if file.exists()] + parts)
        RESULTS.mkdir(exist_ok=True)
        into.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"kept in {into}", file=sys.stderr)
    results = newest()
    (DOCS / "benchmarks.md").write_text(page(results), encoding="utf-8")
    draw(results["ratios"], DOCS / "images" / "benchmarks.png")


if __name__ == "__main__":
    main()
