"""Interleaved timing: programs that do the same work take turns, so that other load on the machine hits all alike."""

import json
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

OURS = "dense-path"
OTHERS = ("transformers", "trl")


@dataclass(frozen=True)
class Timed:
    """Processor seconds a token, of each repeat."""

    seconds: Mapping[str, list[float]]

    def ratio(self, other: str) -> float:
        """How many times as many tokens a second ours does as the other, by medians."""
        return statistics.median(self.seconds[other]) / statistics.median(self.seconds[OURS])

    def rows(self, case: str) -> list[dict[str, Any]]:
        """A line of a table for each program. Beside the ratio of the medians stands that of the fastest repeats, which
        a busy machine changes least."""
        return [
            {
                "case": case,
                "program": name,
                "tokens_per_second": 1 / statistics.median(each),
                "ours_over_it": self.ratio(name),
                "ours_over_it_at_best": min(each) / min(self.seconds[OURS]),
                "seconds_per_token": each,
            }
            for name, each in self.seconds.items()
        ]


def in_turn(programs: Mapping[str, Callable[[], Callable[[], int]]], repeats: int) -> Timed:
    """Each program makes ready and gives back its work, which alone is timed and says how many tokens it did. One round
    to warm up is not counted."""
    # Processor time: on one thread it is the wall's, less what other programs took.
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(repeats + 1):
        for name, make_ready in programs.items():
            work = make_ready()
            started = time.process_time()
            tokens = work()
            if turn:
                seconds[name].append((time.process_time() - started) / tokens)
    return Timed(seconds)


def check_equal_lengths(lengths: Mapping[str, Sequence[int]], tolerance: float) -> None:
    """Fail where programs that draw at random did not draw as many responses, and about as long ones, as ours did."""
    mine = lengths[OURS]
    for name, theirs in lengths.items():
        assert len(theirs) == len(mine), f"{name} drew {len(theirs)} responses, ours {len(mine)}"
        off = abs(sum(theirs) / sum(mine) - 1)
        assert off <= tolerance, (
            f"{name} drew {sum(theirs)} tokens and ours {sum(mine)}, which is {off:.0%} apart and not the same work; "
            "more --repeats bring them nearer to each other"
        )


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "processor": platform.machine(),
        "vector_units": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version(name) for name in OTHERS if find_spec(name)},
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table that people read."""
    lines = ["| case | program | tokens/s | ours over it | at best |", "|---|---|--:|--:|--:|"]
    lines += [
        f"| {row['case']} | {row['program']} | {row['tokens_per_second']:,.0f} "
        f"| {row['ours_over_it']:.2f} | {row['ours_over_it_at_best']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def one_core() -> None:
    """One thread, and no other program's log between the figures."""
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    for name in ("trl", "accelerate", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)


def print_results(results: dict[str, Any], as_json: bool) -> None:
    """What a benchmark prints in the end."""
    if as_json:
        print(json.dumps(results, indent=2))
        return
    print(markdown(results["rows"]))
    print("\n" + "\n".join(f"{name}: {ratio:.2f}" for name, ratio in results["ratios"].items()))
