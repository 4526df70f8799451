"""The demo over several seeds, as the Markdown table in the README.

    python perf/demo_seeds.py --seeds 1 2 3 4 5 --json > docs/seeds.json
    python perf/demo_seeds.py --of docs/seeds.json

The first keeps what the table is made of; stages that are there already (in DPR_HOME) are reused. The second prints it.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from dpr_core.stats import t_interval

NOTHING = "\u2013"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="pipeline seeds")
    parser.add_argument("--recipe", default="demo", help="a recipe or a .yaml file")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="as in dpr run")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of Markdown")
    parser.add_argument("--of", type=Path, metavar="FILE", help="run nothing: what --json printed into this file")
    arguments = parser.parse_args()
    if arguments.of:
        runs = read(arguments.of)
    else:
        runs = {seed: run(arguments.recipe, seed, arguments.set) for seed in arguments.seeds}
    if arguments.json:
        print(json.dumps(runs, indent=2))
    else:
        print(markdown(runs))


def read(file: Path) -> dict[int, dict[str, Any]]:
    """What `--json` printed."""
    return {int(seed): run for seed, run in json.loads(file.read_text(encoding="utf-8")).items()}


def run(recipe: str, seed: int, assignments: list[str]) -> dict[str, Any]:
    """One pipeline run: the rows of its table, and the seconds that its stages took."""
    settings = [f"--set={assignment}" for assignment in (f"seed={seed}", *assignments)]
    command = [sys.executable, "-m", "flows.cli", "run", recipe, "--json", *settings]
    document = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return {
        "rows": document["results"]["rows"],
        "seconds": sum(stage["seconds"] for stage in document["stages"]),
    }


def markdown(runs: dict[int, dict[str, Any]]) -> str:
    """A line a seed and one of means; below it, every policy against the baseline of its benchmark."""
    table = {seed: {(row["policy"], row["benchmark"]): row for row in run["rows"]} for seed, run in runs.items()}
    first = next(iter(table.values()))
    keys = list(first)
    judged = [key for key in keys if not first[key]["is_baseline"]]
    several = len({benchmark for _, benchmark in keys}) > 1
    names = {key: " on ".join(key) if several else key[0] for key in keys}
    baselines = {
        benchmark: (policy, benchmark) for policy, benchmark in keys if first[policy, benchmark]["is_baseline"]
    }

    headings = [f"{names[key]}: accuracy" for key in keys]
    headings += [f"{names[key]}: win rate against {baselines[key[1]][0]}" for key in judged]
    lines = [f"| seed | {' | '.join(headings)} |", "|--:|" + "--:|" * len(headings)]
    for seed, rows in table.items():
        cells = [_accuracy(rows[key]) for key in keys] + [_win_rate(rows[key]) for key in judged]
        lines.append(f"| {seed} | {' | '.join(cells)} |")
    means = [_mean([rows[key]["accuracy"] for rows in table.values()], ".1f", 100) for key in keys]
    means += [_mean([rows[key]["win_rate"] for rows in table.values()], ".1f") for key in judged]
    lines += [f"| mean | {' | '.join(means)} |", ""]
    for key in judged:
        baseline = baselines[key[1]]
        gain = _gain([(rows[key]["accuracy"], rows[baseline]["accuracy"]) for rows in table.values()])
        told = [f"accuracy {gain}", *_beside([rows[key] for rows in table.values()])]
        lines.append(f"- {names[key]} against {baseline[0]}: {', '.join(told)}.")
    for key in baselines.values():
        if told := _beside([rows[key] for rows in table.values()]):
            lines.append(f"- {names[key]}: {', '.join(told)}.")
    return "\n".join(lines)


def _beside(rows: list[dict[str, Any]]) -> list[str]:
    """Length and KL, where every seed has them; a baseline has no KL to itself."""
    tokens = _mean([row.get("response_tokens") for row in rows], ".1f")
    kl = NOTHING if rows[0]["is_baseline"] else _mean([row.get("kl_to_sft") for row in rows], ".2f")
    told = {f"{tokens} tokens an answer": tokens, f"KL {kl} nats": kl}
    return [text for text, value in told.items() if value != NOTHING]


def _accuracy(row: dict[str, Any]) -> str:
    return NOTHING if row["accuracy"] is None else f"{100 * row['accuracy']:.1f}"


def _win_rate(row: dict[str, Any]) -> str:
    if row["win_rate"] is None:
        return NOTHING
    interval = row["win_rate_interval"]
    return f"{row['win_rate']:.1f}" + ("" if interval is None else f" [{interval[0]:.1f}, {interval[1]:.1f}]")


def _mean(values: list[float | None], digits: str, factor: float = 1) -> str:
    """The mean over seeds, or nothing where a seed has no value."""
    known = [factor * value for value in values if value is not None]
    return f"{statistics.fmean(known):{digits}}" if known and len(known) == len(values) else NOTHING


def _gain(pairs: list[tuple[float | None, float | None]]) -> str:
    gains = [100 * (mine - other) for mine, other in pairs if mine is not None and other is not None]
    if not gains or len(gains) < len(pairs):
        return NOTHING
    interval = t_interval(gains)
    spread = f" [{interval[0]:+.1f}, {interval[1]:+.1f}]" if interval else ""
    how = " (Student's 95% interval over seeds)" if interval else ""
    seeds = f"{len(gains)} {'seed' if len(gains) == 1 else 'seeds'}"
    return f"{statistics.fmean(gains):+.1f} points{spread} over {seeds}{how}"


if __name__ == "__main__":
    main()
