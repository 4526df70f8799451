"""Scaling exponents of time and peak memory with response length, batch, vocabulary and data, as a table and, with
--plot, as curves.

    python perf/growth.py --plot growth.png

One of the four is doubled at a time, while the others stay where they are. Time is the processor's, on one thread; peak
memory is what torch's allocator hands out beyond what lay there before (see memory_plan.py). An exponent is the slope
between the logarithms over the last three points: 1 is linear growth, 0 is none. Micro-batches and chunks of logits are
of a fixed size here, so that memory is to grow with neither batch nor data. With the vocabulary it grows by what is as
large as the embedding: its gradient, and what the optimizer computes with.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot
from transformers import LlamaConfig, LlamaForCausalLM

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
from perf.memory_plan import NEVER, measured
from perf.side_by_side import machine, one_core
from perf.sizes import END

Work = Callable[[], object]

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


AXES: dict[str, tuple[int, ...]] = {
    "response": (32, 64, 128, 256, 512),
    "batch": (16, 32, 64, 128),
    "vocabulary": (4096, 8192, 16384, 32768, 65536),
    "data": (32, 64, 128, 256),
}


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
    "SFT step": (sft_step, ("response", "batch", "vocabulary")),
    "SFT pass": (sft_pass, ("data",)),
    "scoring": (scoring, ("response", "batch", "vocabulary")),
    "rollout": (rollout, ("response", "batch", "vocabulary")),
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
            max_position_embeddings=1024,
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


def taken(work: Work, repeats: int) -> tuple[float, int]:
    """Processor seconds, the median, and bytes at the peak. What is measured first also warms up."""
    peak = measured(work)
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds), peak


def grown(axes: Mapping[str, Sequence[int]], repeats: int, base: GrowthPoint = GrowthPoint()) -> list[dict[str, Any]]:
    """A row for each point of each axis."""
    rows = []
    for name, (made_ready, along) in WORKS.items():
        for axis in (axis for axis in axes if axis in along):
            for value in axes[axis]:
                point = replace(base, **{axis: value})
                seconds, peak = taken(made_ready(point), repeats)
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
        slopes = {cost: exponent(sizes, [row[cost] for row in last]) for cost in ("seconds", "peak_bytes")}
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
