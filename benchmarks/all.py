"""Every benchmark that compares two programs, one after the other: their ratios in one JSON file, and as a plot.

    python benchmarks/all.py --out benchmarks/results.json

Needs TRL: `make bench` runs it in an environment that has it. On one core it takes about an hour.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot

HERE = Path(__file__).parent
SCRIPTS = ("sft", "scoring", "rollouts", "rl", "orchestration")


def plot(ratios: dict[str, float], path: Path) -> None:
    """Bars, where 1 is as fast (or as small) as the other."""
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.3 * len(ratios)), layout="constrained")
    axes.barh(list(ratios), list(ratios.values()))
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("times as good as the other")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench.json"), help="the plot goes beside it, as .png")
    parser.add_argument("--only", nargs="+", default=[s for s in SCRIPTS if (HERE / f"{s}.py").exists()])
    arguments = parser.parse_args()
    told: dict[str, Any] = {"ratios": {}, "machine": {}, "benchmarks": {}}
    for name in arguments.only:
        print(f"{name} ...", file=sys.stderr)
        ran = subprocess.run(
            [sys.executable, str(HERE / f"{name}.py"), "--json"], stdout=subprocess.PIPE, text=True, check=True
        )
        found = json.loads(ran.stdout)
        told["ratios"] |= found["ratios"]
        told["machine"] |= found.get("machine", {})
        told["benchmarks"][name] = found
        arguments.out.write_text(json.dumps(told, indent=2) + "\n")
    shown = {name: value for name, value in told["ratios"].items() if "_vs_" in name or "_over_" in name}
    plot(shown, arguments.out.with_suffix(".png"))
    print(json.dumps(told["ratios"], indent=2))


if __name__ == "__main__":
    main()
