"""Scaling exponents of time and peak memory with response length, batch, vocabulary, data and processes, as a table
and, with --plot, as curves.

    python perf/growth.py --plot growth.png

One of them is doubled at a time, while the others stay where they are. Each point has processes of its own, of one
thread each: its time is the sum of what they take of the processor, whatever the cores they share, and its memory the
highest peak of one of them, above what it held when it was ready. An exponent is the slope between the logarithms over
the last three points: 1 is linear growth, 0 is none. Micro-batches and chunks of logits are
of a fixed size here, so that memory is to grow with neither batch nor data. With the vocabulary it grows by what is as
large as the embedding: its gradient, and what the optimizer computes with.
"""

import argparse
import json
import math
import multiprocessing
import os
import socket
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import matplotlib

matplotlib.use("agg")
import torch
from matplotlib import pyplot
from transformers import LlamaConfig, LlamaForCausalLM

from dpr_core import distributed
from dpr_core.algorithms.sft import SupervisedFineTuning
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.training import SFTConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score
from dpr_core.recorder import InMemoryRecorder
from dpr_core.rollouts.engine import Sampling
from dpr_core.rollouts.in_process import InProcessEngine
from dpr_core.training.sft_loop import fine_tune, total_steps
from dpr_core.training.trainer import Trainer
from perf.memory_plan import NEVER
from perf.side_by_side import Turn, begin, machine, one_core, saying_who_ended, taken
from perf.sizes import END

Work = Callable[[], Any]

PROMPT = 32
EXECUTION = ExecutionConfig(tokens_per_micro_batch=1024, logits_per_chunk=2**21, rollout_rows=16)


@dataclass(frozen=True)
class GrowthPoint:
    """What grows."""

    response: int = 64
    """Tokens of each response."""

    batch: int = 16
    """Sequences of one optimizer step, of one scoring or of one rollout."""

    vocabulary: int = 4096

    data: int = 64
    """Demonstrations of a whole pass of SFT, in steps of `batch`."""

    processes: int = 1
    """That share the work."""


AXES: dict[str, tuple[int, ...]] = {
    "response": (64, 256, 1024, 2048, 4096),
    "batch": (16, 32, 64, 128),
    "vocabulary": (4096, 16384, 65536, 131072, 262144),
    "data": (32, 64, 128, 256),
    "processes": (1, 2, 4),
}
SHARED = 64
"""The batch that processes share."""


def sft_step(point: GrowthPoint) -> Work:
    trainer, sequences = _trainer(point), _sequences(point, point.batch)
    return lambda: trainer.step(sequences, SupervisedFineTuning())


def sft_pass(point: GrowthPoint) -> Work:
    sequences = _sequences(point, point.data)
    config = _settings(point)
    trainer = _trainer(point, total_steps(point.data, config))

    def work() -> None:
        trainer.steps_done = 0
        fine_tune(trainer, sequences, config, lambda fraction: None, InMemoryRecorder())

    return work


def scoring(point: GrowthPoint) -> Work:
    policy, sequences = Policy(_network(point.vocabulary), EXECUTION.logits_per_chunk), _sequences(point, point.batch)
    return lambda: score(policy, sequences, EXECUTION.tokens_per_micro_batch)


def rollout(point: GrowthPoint) -> Work:
    engine = InProcessEngine(_network(point.vocabulary).eval(), EXECUTION.rollout_rows)
    prompts = [sequence.prompt for sequence in _sequences(point, point.batch)]
    return lambda: engine.generate(prompts, Sampling(1.0, point.response, NEVER), 0)


WORKS: dict[str, tuple[Callable[[GrowthPoint], Work], tuple[str, ...]]] = {
    "SFT step": (sft_step, ("response", "batch", "vocabulary", "processes")),
    "SFT pass": (sft_pass, ("data",)),
    "scoring": (scoring, ("response", "batch", "vocabulary", "processes")),
    "rollout": (rollout, ("response", "batch", "vocabulary", "processes")),
}
"""What is done, and along which axes it can grow."""


def _network(vocabulary: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
        )
    )


def _sequences(point: GrowthPoint, count: int) -> list[TokenSequence]:
    each = range(END + 1, END + 1 + PROMPT), range(END + 1, END + 1 + point.response)
    return [TokenSequence(*(tuple(token % point.vocabulary for token in part) for part in each))] * count


def _settings(point: GrowthPoint) -> SFTConfig:
    return SFTConfig(batch_size=point.batch, checkpoints=(1.0,), execution=EXECUTION)


def _trainer(point: GrowthPoint, steps: int = 10) -> Trainer:
    """One that has its optimizer's moments already."""
    policy = Policy(_network(point.vocabulary), EXECUTION.logits_per_chunk)
    trainer = Trainer(policy, _settings(point), steps, EXECUTION)
    trainer.step(_sequences(point, 1), SupervisedFineTuning())
    return trainer


def measured(name: str, point: GrowthPoint, repeats: int) -> tuple[float, int]:
    """Processor seconds of all processes, the median, and bytes at the highest peak of one."""
    context = multiprocessing.get_context("forkserver")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ProcessPoolExecutor(point.processes, context, begin) as processes, saying_who_ended(f"{name} at {point}"):
        ranks = [processes.submit(_rank, rank, port, name, point, repeats) for rank in range(point.processes)]
        turns = list(zip(*(rank.result() for rank in ranks), strict=True))
    seconds = [sum(turn.seconds for turn in each) for each in turns]
    return statistics.median(seconds), max(turn.above for each in turns for turn in each)


def _rank(rank: int, port: int, name: str, point: GrowthPoint, repeats: int) -> list[Turn]:
    if point.processes > 1:
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": point.processes, "LOCAL_WORLD_SIZE": point.processes}
        around = own | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
        os.environ |= {variable: str(value) for variable, value in around.items()}
    made_ready, _ = WORKS[name]
    # What a process does but once.
    made_ready(replace(point, response=32, batch=32 * point.processes, data=4))()
    work = made_ready(point)
    turns = [taken(lambda turn: work, turn) for turn in range(repeats)]
    if distributed.world_size() > 1:
        torch.distributed.destroy_process_group()
    return turns


def grown(axes: Mapping[str, Sequence[int]], repeats: int, base: GrowthPoint = GrowthPoint()) -> list[dict[str, Any]]:
    """A row for each point of each axis."""
    rows = []
    for name, (_, along) in WORKS.items():
        for axis in (axis for axis in axes if axis in along):
            for value in axes[axis]:
                point = replace(base, **{axis: value}, **({"batch": SHARED} if axis == "processes" else {}))
                seconds, peak = measured(name, point, repeats)
                print(f"  {name}, {axis} {value}: {seconds:.2f} s, {peak / 1e6:.0f} MB", file=sys.stderr)
                rows.append({"work": name, "axis": axis, **asdict(point), "seconds": seconds, "peak_bytes": peak})
    return rows


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of the line through the logarithms that has the least squares: cost ~ size ** exponent."""
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    mean = statistics.fmean(x)
    slope = sum((a - mean) * b for a, b in zip(x, y, strict=True)) / sum((a - mean) ** 2 for a in x)
    return round(slope, 9) + 0.0


def exponents(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of time and of memory over the last three points of each curve: what is constant counts least there."""
    found = []
    for (work, axis), curve in curves(rows).items():
        last = curve[-3:]
        sizes = [row[axis] for row in last]
        # Work that fits into what the process holds already has no peak of its own.
        slopes = {cost: exponent(sizes, [row[cost] or 1 for row in last]) for cost in ("seconds", "peak_bytes")}
        found.append({"work": work, "axis": axis, **slopes})
    return found


def curves(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """The rows of each work along each axis."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["work"], row["axis"]), []).append(row)
    return found


def markdown(results: Mapping[str, Any]) -> str:
    lines = ["| work | grows with | from, to | seconds | peak, MB | exponent of time | of memory |"]
    lines.append("|---|---|---|---|---|--:|--:|")
    slopes = {(each["work"], each["axis"]): each for each in results["exponents"]}
    for (work, axis), curve in curves(results["rows"]).items():
        seconds = ", ".join(f"{row['seconds']:.2f}" for row in curve)
        peaks = ", ".join(f"{row['peak_bytes'] / 1e6:.0f}" for row in curve)
        slope = slopes[work, axis]
        lines.append(
            f"| {work} | {axis} | {curve[0][axis]}, {curve[-1][axis]} | {seconds} | {peaks} "
            f"| {slope['seconds']:.2f} | {slope['peak_bytes']:.2f} |"
        )
    return "\n".join(lines)


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Time above memory, a column for each axis; both scales are logarithmic."""
    along = list(dict.fromkeys(row["axis"] for row in rows))
    figure, panels = pyplot.subplots(
        2, len(along), figsize=(3.2 * len(along), 5.5), layout="constrained", squeeze=False
    )
    for (work, axis), curve in curves(rows).items():
        column = panels[:, along.index(axis)]
        for panel, values in zip(
            column, ([row["seconds"] for row in curve], [row["peak_bytes"] / 1e6 for row in curve]), strict=True
        ):
            panel.loglog([row[axis] for row in curve], values, marker="o", markersize=3, label=work, base=2)
    for i, axis in enumerate(along):
        panels[0, i].legend(fontsize=7)
        panels[1, i].set_xlabel(axis)
    panels[0, 0].set_ylabel("processor seconds")
    panels[1, 0].set_ylabel("peak, MB")
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--plot", type=Path, help="where to draw the curves")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of Markdown")
    arguments = parser.parse_args()
    one_core()
    rows = grown({axis: AXES[axis] for axis in arguments.axes}, arguments.repeats)
    results = {"machine": machine(), "exponents": exponents(rows), "rows": rows}
    if arguments.plot:
        plot(rows, arguments.plot)
    print(json.dumps(results, indent=2) if arguments.json else markdown(results))


if __name__ == "__main__":
    main()
