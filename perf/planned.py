"""The planner's time for what bench-real measured, at the machine's own measured limits, beside the time it took: the
utilisation, and for rollouts what fraction of the memory bandwidth and of the operations they reach.

    python perf/planned.py --of bench-real.json

Operations and bytes are those that `dpr plan` counts (dpr_core/planning/hours.py); the limits of one core stand where a
GPU's peaks do.
"""

import argparse
import json
import os
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from dpr_core.data.encoding import TokenSequence
from dpr_core.planning.architecture import Architecture, architecture_from_config
from dpr_core.planning.hours import StageWork
from perf.all import table
from perf.device_limits import Limits, by_measuring, rows_of
from perf.rollouts import drawn_up
from perf.side_by_side import DTYPES, OURS, dtype_of, machine, named, one_core
from perf.sizes import SIZES, configuration, ragged, response_length, response_lengths
from perf.utilisation import bytes_read, read_once, trained

Settings = Mapping[str, Any]


def sft(a: Architecture, settings: Settings, size: str, dtype: torch.dtype) -> tuple[StageWork, int]:
    """And the tokens of the responses, of which the benchmark tells the seconds."""
    sequences = ragged(settings["batch"] * settings["steps"], size)
    return trained(a, sequences, adapters=False), sum(response_lengths(sequences))


def scoring(a: Architecture, settings: Settings, size: str, dtype: torch.dtype) -> tuple[StageWork, int]:
    """Under two models."""
    sequences = ragged(settings["sequences"], size)
    return read_once(a, sequences) * 2, sum(response_lengths(sequences))


def rollouts(a: Architecture, settings: Settings, size: str, dtype: torch.dtype) -> tuple[StageWork, int]:
    work = drawn_up(settings["prompts"], SIZES[size]["vocab_size"])
    return drawn(a, work.prompts, work.lengths, settings["rows"], dtype), sum(work.lengths)


def rl(a: Architecture, settings: Settings, size: str, dtype: torch.dtype) -> tuple[StageWork, int]:
    """Drawing, a pass each under SFT and the reference, in bfloat16 one of the policy before its update, and that."""
    prompts = [s.prompt for s in ragged(settings["prompts"], size) for _ in range(settings["samples"])]
    rng = random.Random(0)
    lengths = [response_length(rng) for _ in prompts]
    sequences = _sequences(prompts, lengths)
    passes = read_once(a, sequences) * (2 if dtype == torch.float32 else 3) + trained(a, sequences, adapters=False)
    return drawn(a, prompts, lengths, len(prompts), dtype) + passes, sum(lengths)


def drawn(
    a: Architecture, prompts: Sequence[tuple[int, ...]], lengths: Sequence[int], rows: int, dtype: torch.dtype
) -> StageWork:
    sequences = _sequences(prompts, lengths)
    return replace(read_once(a, sequences), read=bytes_read(a, sequences, rows, dtype.itemsize, head=4))


def _sequences(prompts: Sequence[tuple[int, ...]], lengths: Sequence[int]) -> list[TokenSequence]:
    return [TokenSequence(prompt, (3,) * length) for prompt, length in zip(prompts, lengths, strict=True)]


STAGES = {"sft": sft, "scoring": scoring, "rollouts": rollouts, "rl": rl}


def least_seconds(work: StageWork, limits: Limits) -> float:
    """As `StageWork.hours` at a utilisation of 1: operations, and then what is read."""
    return work.body / limits.operations + work.head / limits.head + work.read / limits.read


def compared(name: str, found: Mapping[str, Any], limits: Mapping[str, Limits]) -> list[dict[str, Any]]:
    """A row for each case of a benchmark that ours did."""
    rows = []
    for row in (row for row in found["rows"] if row["program"] in (named(OURS, dtype) for dtype in DTYPES)):
        dtype, size = dtype_of(row["program"]), row["case"].partition("_")[0]
        architecture = architecture_from_config(configuration(size))
        stage = name.removeprefix("real_").partition("_")[0]
        work, tokens = STAGES[stage](architecture, found["settings"], size, DTYPES[dtype])
        took, limit = tokens * statistics.median(row["seconds_per_token"]), limits[dtype]
        planned = least_seconds(work, limit)
        reading = {
            "share_of_bandwidth": work.read / limit.read / took,
            "share_of_operations": (planned - work.read / limit.read) / took,
        }
        rows.append(
            {
                "benchmark": name,
                "program": row["program"],
                "tokens_per_second": row["tokens_per_second"],
                "planned_seconds": planned,
                "measured_seconds": took,
                "utilisation": planned / took,
                **(reading if work.read else {}),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", type=Path, required=True, metavar="FILE", help="what perf/all.py --real wrote")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of Markdown")
    arguments = parser.parse_args()
    one_core()
    benchmarks = json.loads(arguments.of.read_text())["benchmarks"]
    measured = {name: found for name, found in benchmarks.items() if name.startswith("real_") and "settings" in found}
    dtypes = dict.fromkeys(dtype for found in measured.values() for dtype in found["settings"]["dtype"])
    limits = {dtype: by_measuring(torch.device("cpu"), DTYPES[dtype]) for dtype in dtypes}
    reached = [{"type": dtype, **row} for dtype, limit in limits.items() for row in rows_of(limit, None)]
    rows = [row for name, found in measured.items() for row in compared(name, found, limits)]
    results = {"machine": machine(), "limits": reached, "rows": rows}
    print(json.dumps(results, indent=2) if arguments.json else f"{table(reached)}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
