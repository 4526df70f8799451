"""SFT throughput beside TRL's SFTTrainer on the same batches: response tokens a second on one core, as Markdown.

    python perf/sft.py --sizes tiny small v32k

TRL is tuned: float32, no gradient checkpointing, nothing logged or saved; `grouped` also gets batches of sequences of
similar length, in a shuffled order, which changes what a batch is. All of a turn are sorted here, since transformers'
own grouping, made for large data sets, sorts the few of a turn a quarter at a time. How much of TRL's batches is no
padding, as they come and grouped, is in the JSON. Both sides take the same optimizer, and the losses of their first
steps on the same batches are compared before anything is timed. bfloat16 is that of activations: float32 weights under
autocast, on both sides.
"""

import math
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from datasets import Dataset
from side_by_side import (
    DTYPES,
    OURS,
    Program,
    Timed,
    Work,
    alone,
    arguments_for,
    beside,
    in_turn,
    named,
    one_core,
    print_results,
    suffix,
)
from sizes import SIZES, network, ragged, response_lengths, share_of_tokens, word_tokenizer
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig as TRLConfig
from trl import SFTTrainer

from dpr_core.algorithms.sft import SupervisedFineTuning
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.training import SFTConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.models.policy import Policy
from dpr_core.recorder import InMemoryRecorder
from dpr_core.training.sft_loop import fine_tune
from dpr_core.training.trainer import Trainer

RATE = 1e-4
ORDERS = {"TRL tuned": "random", "TRL grouped": "sequential"}
DIFFERENCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Of losses, at most."""

Sequences = Sequence[TokenSequence]


def grouped(sequences: Sequences, batch: int) -> list[TokenSequence]:
    """Batch after batch of similar length, in a shuffled order."""
    ordered = sorted(sequences, key=len)
    batches = [ordered[start : start + batch] for start in range(0, len(ordered), batch)]
    random.Random(0).shuffle(batches)
    return [sequence for each in batches for sequence in each]


def ours(sequences: Sequences, size: str, batch: int, dtype: str = "float32") -> Work:
    config = SFTConfig(
        learning_rate=RATE, batch_size=batch, warmup_ratio=0.0, final_learning_rate_share=1.0, checkpoints=(1.0,)
    )
    policy = Policy(network(size), activations=DTYPES[dtype])
    trainer = Trainer(policy, config, math.ceil(len(sequences) / batch), ExecutionConfig())

    def work() -> list[int]:
        fine_tune(trainer, sequences, config, lambda fraction: None, InMemoryRecorder())
        return response_lengths(sequences)

    return work


def theirs(
    sequences: Sequences,
    size: str,
    batch: int,
    dtype: str = "float32",
    order: str = "random",
    losses: list[float] | None = None,
) -> Work:
    rows = [
        {"input_ids": [*s.prompt, *s.response], "completion_mask": [0] * len(s.prompt) + [1] * len(s.response)}
        for s in sequences
    ]
    config = TRLConfig(
        output_dir=tempfile.gettempdir(),
        per_device_train_batch_size=batch,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        adam_beta1=0.9,
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        num_train_epochs=1,
        completion_only_loss=True,
        train_sampling_strategy=order,
        bf16=dtype == "bfloat16",
        gradient_checkpointing=False,
        use_cpu=True,
        disable_tqdm=True,
        report_to=[],
        logging_strategy="no" if losses is None else "steps",
        logging_steps=1,
        save_strategy="no",
    )
    trainer = SFTTrainer(
        model=network(size), args=config, train_dataset=Dataset.from_list(rows), processing_class=word_tokenizer(size)
    )
    if losses is not None:
        trainer.add_callback(_Losses(losses))
    trainer.remove_callback(PrinterCallback)

    def work() -> list[int]:
        trainer.train()
        return response_lengths(sequences)

    return work


class _Losses(TrainerCallback):
    def __init__(self, losses: list[float]) -> None:
        self.losses = losses

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))


def largest_difference(size: str, dtype: str, batch: int = 4, steps: int = 3) -> float:
    """Of the two sides' losses over the first steps on the same batches."""
    sequences = ragged(batch * steps, size, seed=1)
    config = SFTConfig(learning_rate=RATE, batch_size=batch, warmup_ratio=0.0, final_learning_rate_share=1.0)
    trainer = Trainer(Policy(network(size), activations=DTYPES[dtype]), config, steps, ExecutionConfig())
    batches = [sequences[start : start + batch] for start in range(0, len(sequences), batch)]
    mine = [trainer.step(each, SupervisedFineTuning())["train/loss"] for each in batches]
    other: list[float] = []
    theirs(sequences, size, batch, dtype, "sequential", other)()
    return max(abs(a - b) for a, b in zip(mine, other, strict=True))


def one_pass(side: Any, sequences: Sequences, size: str, batch: int, turn: int, **also: str) -> Work:
    return side(sequences if turn else sequences[:batch], size, batch, **also)


def compared(size: str, dtypes: Sequence[str], batch: int, steps: int, repeats: int) -> Timed:
    sequences = ragged(batch * steps, size)
    programs: dict[str, Program] = {}
    for dtype in dtypes:
        programs[named(OURS, dtype)] = partial(one_pass, ours, sequences, size, batch, dtype=dtype)
        for name, order in ORDERS.items():
            chosen = grouped(sequences, batch) if name == "TRL grouped" else sequences
            programs[named(name, dtype)] = partial(one_pass, theirs, chosen, size, batch, dtype=dtype, order=order)
    return in_turn(programs, repeats)


def main() -> None:
    parser = arguments_for(__doc__, ["tiny", "small", "v32k"], list(SIZES))
    parser.add_argument("--batch", type=int, default=32, help="sequences of one optimizer step")
    parser.add_argument("--steps", type=int, default=12, help="of one turn")
    arguments = parser.parse_args()
    one_core()
    rows, ratios, differences = [], {}, {}
    for size in arguments.sizes:
        for dtype in arguments.dtype:
            found = differences[size + suffix(dtype)] = alone(largest_difference, size, dtype)
            assert found < DIFFERENCE[dtype], f"the two sides do not learn alike: their losses are {found:.2g} apart"
        timed = compared(size, arguments.dtype, arguments.batch, arguments.steps, arguments.repeats)
        rows += timed.rows(size)
        for dtype in arguments.dtype:
            for name in ORDERS:
                ratio = f"sft_vs_{name.lower().replace(' ', '_')}_{size}{suffix(dtype)}"
                ratios[ratio] = timed.ratio(*beside(name, dtype, arguments.dtype), ours=named(OURS, dtype))
    batch, sequences = arguments.batch, ragged(arguments.batch * arguments.steps, "tiny")
    results = {
        "ratios": ratios,
        "loss_differences": differences,
        "share_of_tokens_when_padded": share_of_tokens(sequences, batch),
        "share_of_tokens_when_grouped": share_of_tokens(grouped(sequences, batch), batch),
    }
    print_results({**results, "rows": rows}, arguments)


if __name__ == "__main__":
    main()
