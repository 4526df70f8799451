"""Model FLOPs utilisation (MFU) of SFT, scoring and the REINFORCE update, and the share of memory bandwidth that
sampling reaches, against limits measured in the same run, as Markdown.

    python perf/utilisation.py --sizes tiny small v32k
    python perf/utilisation.py --sizes 1b 8b

The second needs a GPU, where it is the default. Operations are those of the model on tokens that are no padding, as
`dpr plan` counts them; what is computed again, or for padding, is time lost. Networks have random weights: 1b and 8b
the shapes of Llama-3.2-1B and Llama-3.1-8B. Activations are bfloat16 on a GPU and float32 on a CPU. The head's
products are slower than the others on a GPU, and `at_most` is the utilisation that this leaves.
"""

import argparse
import gc
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from transformers import PreTrainedModel

from dpr_core import distributed
from dpr_core.algorithms import policy_gradient
from dpr_core.algorithms.base import LossInputs
from dpr_core.algorithms.sft import SupervisedFineTuning
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.reinforce import ReinforceConfig
from dpr_core.config.training import LoRAConfig, SFTConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.errors import DensePathError
from dpr_core.models.lora import add_adapters
from dpr_core.models.policy import Policy, compile_layers
from dpr_core.models.scoring import score
from dpr_core.planning import hours
from dpr_core.planning.architecture import Architecture, architecture_from_config
from dpr_core.planning.hours import RESERVED, UTILISATION, Gpu, StageWork
from dpr_core.planning.stages import PlanInputs, estimate
from dpr_core.rollouts.engine import Completion, Sampling
from dpr_core.training.trainer import Trainer
from perf.device_limits import Limits, by_maker, by_measuring, known, rows_of, seconds
from perf.sizes import LARGE, PROMPTS, RESPONSES, SIZES, ScriptedLengths, large_network, network, ragged

WAYS: dict[str, tuple[LoRAConfig | None, bool]] = {
    "all weights": (None, False),
    "all weights, activations computed again": (None, True),
    "adapters": (LoRAConfig(), False),
    "adapters, activations computed again": (LoRAConfig(), True),
}
"""What is trained, and whether activations are computed again; the first that fits is taken."""
LONG = (64, 1024), (32, 256)
"""Tokens of responses and prompts on a GPU: few do not keep it busy."""
DRAWN = (32, 192), (32, 128)
"""The same where they are drawn, which takes as many steps as the longest has tokens, or more."""
NEVER_DRAWN = 0
"""The token that ends a response whose length is given."""
RATE = 1e-6


@dataclass(frozen=True)
class Task:
    """Something to do, in so few words, and what it takes at least."""

    run: Callable[[], object]
    least: StageWork
    how: str = ""
    planned: float | None = None
    """Bytes at the peak, by `dpr plan`."""
    work: StageWork = field(default_factory=StageWork)
    """What `dpr plan` makes hours of."""


class UtilisationBench:
    """Makes the tasks of one size."""

    def __init__(
        self,
        size: str,
        device: torch.device,
        dtype: torch.dtype,
        count: int,
        rows: int,
        execution: ExecutionConfig | None = None,
        attention: str = "sdpa",
        prompts: int | None = None,
    ) -> None:
        self.size, self.device, self.dtype, self.rows = size, device, dtype, rows
        self.execution, self.attention = execution or ExecutionConfig(), attention
        trained, drawn = (LONG, DRAWN) if device.type == "cuda" else ((RESPONSES, PROMPTS),) * 2
        # Of token ids that every vocabulary has.
        self.sequences = ragged(count, "toy", 0, *trained)
        self.to_draw = ragged(prompts or 4 * rows, "toy", 1, *drawn)

    def network(self) -> PreTrainedModel:
        with self.device:
            model = large_network(self.size, self.device) if self.size in LARGE else network(self.size)
        model.config.max_position_embeddings = max(model.config.max_position_embeddings, sum(map(max, LONG)))
        if self.attention != "sdpa":
            model.set_attn_implementation(self.attention)
        return model

    def policy(self, model: PreTrainedModel) -> Policy:
        execution = self.execution
        return Policy(model, execution.logits_per_chunk, self.dtype, execution.packing, tf32_head=execution.tf32_head)

    def inputs(self, model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> PlanInputs:
        architecture, dtype = architecture_from_config(model.config), str(self.dtype).removeprefix("torch.")
        prompts, responses = ([len(part) for part in parts] for parts in zip(*map(parts_of, sequences), strict=True))
        limits = SFTConfig(max_prompt_tokens=max(prompts), max_response_tokens=max(responses), epochs=1)
        means = statistics.fmean(prompts), statistics.fmean(responses)
        on_gpu = self.device.type == "cuda"
        return PlanInputs(architecture, dtype, self.attention, len(sequences), limits, *means, on_gpu=on_gpu)

    def sft(self) -> Task:
        trainer, _, task = self.learning()
        return replace(task, run=lambda: trainer.step(self.sequences, SupervisedFineTuning()))

    def update(self) -> Task:
        trainer, policy, task = self.learning()
        old = score(policy, self.sequences, None).log_probs
        inputs = LossInputs(old_log_probs=old, advantages=torch.ones_like(old))
        method = policy_gradient(ReinforceConfig().algorithm)
        return replace(task, run=lambda: trainer.step(self.sequences, method, inputs))

    def learning(self) -> tuple[Trainer, Policy, Task]:
        model = self.network()
        architecture = architecture_from_config(model.config)
        room = torch.cuda.mem_get_info()[1] * (1 - RESERVED) if self.device.type == "cuda" else float("inf")
        way = fitting(architecture, self.dtype, self.sequences, room)
        lora, again = WAYS[way]
        execution = self.execution.model_copy(update={"gradient_checkpointing": again})
        inputs = self.inputs(model, self.sequences)
        planned = estimate(inputs.learned.model_copy(update={"lora": lora, "execution": execution}), inputs)
        if lora:
            add_adapters(model, lora, 0)
        policy = self.policy(model).round_frozen()
        settings = SFTConfig(learning_rate=RATE, batch_size=len(self.sequences))
        trainer = Trainer(policy, settings, 100, execution)
        least = trained(architecture, self.sequences, adapters=lora is not None)
        return trainer, policy, Task(lambda: None, least, way, planned.peak.total, planned.work)

    def scoring(self) -> Task:
        policy = self.policy(self.network()).freeze()
        if self.execution.compile:
            compile_layers(policy)
        inputs = self.inputs(policy.model, self.sequences)
        memory = inputs.memory(self.execution, inputs.learned.max_prompt_tokens, inputs.learned.max_response_tokens)
        planned = memory.frozen + max(parts.total for parts in memory.scoring())
        work = hours.forward(inputs.architecture, inputs.sequences(len(self.sequences), *longest(self.sequences)))
        run = lambda: score(policy, self.sequences, None)  # noqa: E731
        return Task(run, read_once(inputs.architecture, self.sequences), "", planned, work)

    def rollout(self) -> Task:
        model, lengths = self.network().eval(), [len(s.response) for s in self.to_draw]
        execution = self.execution.model_copy(update={"rollout_rows": self.rows})
        engine = ScriptedLengths.of(self.policy(model), execution)
        engine.lengths = lengths
        sampling = Sampling(1.0, max(lengths), NEVER_DRAWN)

        def run() -> list[Completion]:
            completions = engine.generate([s.prompt for s in self.to_draw], sampling, seed=0)
            assert [c.length for c in completions] == lengths
            return completions

        inputs, head = self.inputs(model, self.to_draw), model.get_output_embeddings().weight
        architecture, halved = inputs.architecture, self.dtype == torch.bfloat16
        read = bytes_read(architecture, self.to_draw, self.rows, self.dtype.itemsize, head.element_size())
        least = replace(read_once(architecture, self.to_draw), tokens=sum(lengths), read=read)
        memory = inputs.memory(execution, *longest(self.to_draw))
        planned = memory.network + max(parts.total for parts in memory.drawing(len(lengths), learned=True))
        sequences = inputs.sequences(len(lengths), *longest(self.to_draw))
        work = hours.drawing(architecture, sequences, self.rows, max(lengths), halved)
        return Task(run, least, f"{len(lengths)} prompts, {self.rows} rows at once", planned, work)


TASKS: dict[str, Callable[[UtilisationBench], Task]] = {
    "sft": UtilisationBench.sft,
    "score": UtilisationBench.scoring,
    "update": UtilisationBench.update,
    "rollout": UtilisationBench.rollout,
}


def fitting(architecture: Architecture, dtype: torch.dtype, sequences: Sequence[TokenSequence], room: float) -> str:
    """The first way to train that the planned memory leaves."""
    limits = dict(zip(("max_prompt_tokens", "max_response_tokens"), longest(sequences), strict=True))
    for way, (lora, again) in WAYS.items():
        config = SFTConfig(**limits, lora=lora, execution=ExecutionConfig(gradient_checkpointing=again))
        around = PlanInputs(architecture, str(dtype).removeprefix("torch."), "sdpa", len(sequences), config)
        if estimate(config, around).peak.total <= room:
            return way
    raise DensePathError("training does not fit, nor do adapters alone")


def parts_of(sequence: TokenSequence) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return sequence.prompt, sequence.response


def longest(sequences: Sequence[TokenSequence]) -> tuple[int, int]:
    """Tokens of the longest prompt and of the longest response."""
    return max(len(s.prompt) for s in sequences), max(len(s.response) for s in sequences)


def each(sequences: Sequence[TokenSequence]) -> list[hours.Sequences]:
    """One by one, since attention grows with the square of the length."""
    return [hours.Sequences(1, len(s.prompt), len(s.response)) for s in sequences]


def read_once(architecture: Architecture, sequences: Sequence[TokenSequence]) -> StageWork:
    return sum((hours.forward(architecture, s) for s in each(sequences)), StageWork())


def trained(architecture: Architecture, sequences: Sequence[TokenSequence], adapters: bool) -> StageWork:
    """The model's own operations; what is computed again does not count."""
    return sum((hours.training(architecture, s, False, False, adapters) for s in each(sequences)), StageWork())


def bytes_read(a: Architecture, sequences: Sequence[TokenSequence], rows: int, number: int, head: int) -> int:
    """By an engine whose rows are never idle: the weights once for the next token of all rows, and for each token the
    keys and values of those before it, but for a response's first, which its prompt's pass gives. `number` and `head`
    are bytes of an activation and of a number of the head."""
    lengths = [len(s.response) for s in sequences]
    passes = max(*lengths, -(-sum(lengths) // rows))
    weights = number * a.layers * a.layer_matrices + head * a.head
    seen = sum(len(s.prompt) * (n - 1) + n * (n - 1) // 2 for s, n in zip(sequences, lengths, strict=True))
    return passes * weights + 2 * number * a.cached_numbers(seen)


def measured(
    name: str, bench: UtilisationBench, limits: Limits, makers: Limits | None, repeats: int, gpu: Gpu | None = None
) -> dict[str, Any]:
    # Of what was measured before.
    gc.collect()
    torch.cuda.empty_cache()
    row: dict[str, Any] = {"case": bench.size, "work": name}
    dtype = str(bench.dtype).removeprefix("torch.")
    on_gpu = bench.device.type == "cuda"
    try:
        task = TASKS[name](bench)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        taken = seconds(task.run, bench.device, repeats)
    except (DensePathError, torch.OutOfMemoryError) as error:
        return {**row, "how": f"not measured: {str(error).splitlines()[0]}"}
    median, least = statistics.median(taken), task.least
    return {
        **row,
        "how": task.how,
        "tokens_per_second": least.tokens / median,
        "teraflops": least.operations / median / 1e12,
        "gigabytes_per_second": least.read / median / 1e9 if least.read else None,
        "utilisation": limits.share(least, median),
        "at_most": limits.at_most(least),
        "of_makers_peak": makers.share(least, median) if makers else None,
        "seconds": taken,
        "planned_seconds": 3600 * task.work.hours(gpu, dtype, UTILISATION, bench.execution.tf32_head) if gpu else None,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "planned_bytes": task.planned,
    }


def main() -> None:
    device = distributed.device()
    on_gpu = device.type == "cuda"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = list(LARGE) if on_gpu else ["tiny", "small", "v32k"]
    parser.add_argument("--sizes", nargs="+", default=default, choices=[*SIZES, *LARGE])
    parser.add_argument("--sequences", type=int, default=128 if on_gpu else 32, help="of a step, or scored")
    parser.add_argument("--rows", type=int, default=128 if on_gpu else 32, help="drawn at once, of 4 times as many")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of Markdown")
    arguments = parser.parse_args()
    # Not on a bare machine with a GPU, whose parts need neither.
    from perf.all import table
    from perf.side_by_side import machine, one_core

    if not on_gpu and set(arguments.sizes) & set(LARGE):
        parser.error(f"{' and '.join(LARGE)} need a GPU, and torch sees none")
    one_core()
    dtype = torch.bfloat16 if on_gpu else torch.float32
    limits = by_measuring(device, dtype)
    gpu = known(torch.cuda.get_device_name()) if on_gpu else None
    makers = by_maker(gpu, dtype) if gpu else None
    rows = []
    for size in arguments.sizes:
        bench = UtilisationBench(size, device, dtype, arguments.sequences, arguments.rows)
        for name in TASKS:
            rows.append(measured(name, bench, limits, makers, arguments.repeats, gpu))
    ratios = {f"utilisation_{row['work']}_{row['case']}": row["utilisation"] for row in rows if "utilisation" in row}
    around = machine() | ({"gpu": torch.cuda.get_device_name()} if on_gpu else {})
    reached = rows_of(limits, makers)
    results = {"ratios": ratios, "machine": around, "limits": reached, "rows": rows}
    print(json.dumps(results, indent=2) if arguments.json else f"{table(reached)}\n\n{table(rows)}")
    if not on_gpu:
        print(f"No GPU: {' and '.join(LARGE)} are measured on one.", file=sys.stderr)


if __name__ == "__main__":
    main()
