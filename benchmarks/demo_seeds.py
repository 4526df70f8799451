"""The demo over several seeds, as the Markdown table that README.md shows.

    python benchmarks/demo_seeds.py --seeds 1 2 3 4 5

Stages that are there already (in DPR_HOME) are reused.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from dpr_core.reporting.statistics import mean_interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="pipeline seeds")
    parser.add_argument("--recipe", default="demo", help="a recipe or a .yaml file")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="as in dpr run")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of Markdown")
    arguments = parser.parse_args()
    runs = {seed: run(arguments.recipe, seed, arguments.set) for seed in arguments.seeds}
    if arguments.json:
        print(json.dumps(runs, indent=2))
    else:
        print(markdown(runs))


def run(recipe: str, seed: int, assignments: list[str]) -> dict[str, Any]:
    """One pipeline run; its rows by policy, and the seconds that its stages took."""
    settings = [f"--set={assignment}" for assignment in (f"seed={seed}", *assignments)]
    command = [sys.executable, "-m", "flows.cli", "run", recipe, "--json", *settings]
    document = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return {
        "policies": {row["policy"]: row for row in document["results"]["rows"]},
        "seconds": sum(stage["seconds"] for stage in document["stages"]),
    }


def markdown(runs: dict[int, dict[str, Any]]) -> str:
    policies = list(next(iter(runs.values()))["policies"])
    lines = ["| seed | " + " | ".join(f"{p}: accuracy" for p in policies) + " | "]
    lines[0] += " | ".join(f"{p}: win rate against SFT" for p in policies[1:]) + " |"
    lines.append("|--:|" + "--:|" * (2 * len(policies) - 1))
    for seed, outcome in runs.items():
        rows = outcome["policies"]
        cells = [f"{100 * rows[p]['accuracy']:.1f}" for p in policies]
        for policy in policies[1:]:
            low, high = rows[policy]["win_rate_interval"]
            cells.append(f"{rows[policy]['win_rate']:.1f} [{low:.1f}, {high:.1f}]")
        lines.append(f"| {seed} | " + " | ".join(cells) + " |")
    means = [statistics.fmean(100 * r["policies"][p]["accuracy"] for r in runs.values()) for p in policies]
    rates = [statistics.fmean(r["policies"][p]["win_rate"] for r in runs.values()) for p in policies[1:]]
    lines.append("| mean | " + " | ".join(f"{value:.1f}" for value in [*means, *rates]) + " |")
    lines.append("")
    for policy in policies[1:]:
        gains = [
            100 * (r["policies"][policy]["accuracy"] - r["policies"][policies[0]]["accuracy"]) for r in runs.values()
        ]
        interval = mean_interval(gains, samples=10_000, seed=0)
        spread = f" [{interval[0]:+.1f}, {interval[1]:+.1f}]" if interval else ""
        rows = [r["policies"][policy] for r in runs.values()]
        lengths = statistics.fmean(row["response_tokens"] for row in rows)
        kl = statistics.fmean(row["kl_to_sft"] for row in rows)
        lines.append(
            f"- {policy} against {policies[0]}: accuracy {statistics.fmean(gains):+.1f} points{spread} over "
            f"{len(runs)} seeds (95% bootstrap interval over seeds), {lengths:.1f} tokens an answer, KL {kl:.2f} nats."
        )
    baseline = statistics.fmean(r["policies"][policies[0]]["response_tokens"] for r in runs.values())
    lines.append(f"- {policies[0]}: {baseline:.1f} tokens an answer.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
