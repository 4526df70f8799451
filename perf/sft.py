"""SFT throughput beside TRL's SFTTrainer on the same batches: response tokens a second on one core, as Markdown.

    python perf/sft.py --sizes tiny small v32k

TRL is tuned: float32, no gradient checkpointing, nothing logged or saved; `grouped` also puts sequences of similar
length together, which changes what a batch is. Both sides take the same optimizer, and the losses of their first steps
on the same batches are compared before anything is timed.
"""

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from datasets import Dataset
from side_by_side import OURS, Timed, in_turn, machine, one_core, print_results
from sizes import SIZES, network, ragged, response_tokens, share_of_tokens, word_tokenizer
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


def ours(sequences: Sequence[TokenSequence], size: str, batch: int) -> Callable[[], int]:
    config = SFTConfig(
        learning_rate=RATE, batch_size=batch, warmup_ratio=0.0, final_learning_rate_share=1.0, checkpoints=(1.0,)
    )
    trainer = Trainer(Policy(network(size)), config, math.ceil(len(sequences) / batch), ExecutionConfig())

    def work() -> int:
        fine_tune(trainer, sequences, config, lambda fraction: None, InMemoryRecorder())
        return response_tokens(sequences)

    return work


def theirs(
    sequences: Sequence[TokenSequence], size: str, batch: int, order: str, losses: list[float] | None = None
) -> Callable[[], int]:
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
        bf16=False,
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

    def work() -> int:
        trainer.train()
        return response_tokens(sequences)

    return work


class _Losses(TrainerCallback):
    def __init__(self, losses: list[float]) -> None:
        self.losses = losses

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))


def largest_difference(size: str, batch: int, steps: int = 4) -> float:
    """Of the two sides' losses over the first steps on the same batches."""
    sequences = ragged(batch * steps, size, seed=1)
    config = SFTConfig(learning_rate=RATE, batch_size=batch, warmup_ratio=0.0, final_learning_rate_share=1.0)
    trainer = Trainer(Policy(network(size)), config, steps, ExecutionConfig())
    batches = [sequences[start : start + batch] for start in range(0, len(sequences), batch)]
    mine = [trainer.step(each, SupervisedFineTuning())["train/loss"] for each in batches]
    other: list[float] = []
    theirs(sequences, size, batch, "sequential", other)()
    return max(abs(a - b) for a, b in zip(mine, other, strict=True))


def compared(size: str, batch: int, steps: int, repeats: int) -> Timed:
    sequences = ragged(batch * steps, size)
    return in_turn(
        {
            OURS: lambda: ours(sequences, size, batch),
            "TRL tuned": lambda: theirs(sequences, size, batch, "random"),
            "TRL grouped": lambda: theirs(sequences, size, batch, "group_by_length"),
        },
        repeats,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["tiny", "small", "v32k"], choices=list(SIZES))
    parser.add_argument("--batch", type=int, default=32, help="sequences of one optimizer step")
    parser.add_argument("--steps", type=int, default=12, help="of one repeat; TRL groups among a quarter of them")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of Markdown")
    arguments = parser.parse_args()
    one_core()
    rows, ratios, differences = [], {}, {}
    for size in arguments.sizes:
        differences[size] = largest_difference(size, arguments.batch)
        assert differences[size] < 1e-3, "the two sides do not learn alike"
        timed = compared(size, arguments.batch, arguments.steps, arguments.repeats)
        rows += timed.rows(size)
        ratios[f"sft_vs_trl_tuned_{size}"] = timed.ratio("TRL tuned")
        ratios[f"sft_vs_trl_grouped_{size}"] = timed.ratio("TRL grouped")
    share = share_of_tokens(ragged(arguments.batch * arguments.steps, "tiny"), arguments.batch)
    results = {"ratios": ratios, "loss_differences": differences, "share_of_tokens_when_padded": share}
    print_results({**results, "machine": machine(), "rows": rows}, arguments.json)


if __name__ == "__main__":
    main()
