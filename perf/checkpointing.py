"""Overhead of checkpointing a training loop: bytes of a state and the seconds to write, hash and read it, as Markdown.

    python perf/checkpointing.py --width 256 --layers 8

The network has random weights and has taken one step of SFT, so that its optimizer's moments are there. The last column
is the share of a run's time that goes into states when one is kept every so many minutes.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from dpr_core.algorithms.sft import SupervisedFineTuning
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.training import OptimizerConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.models.policy import Policy
from dpr_core.state import read
from dpr_core.training.trainer import Trainer
from tasks.running.stage_workdir import StageWorkdir, format_bytes, write_state

ROWS = [TokenSequence(tuple(range(3, 13)), tuple(range(13, 32))) for _ in range(8)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256, help="of the network; a head is 32 wide")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5, help="states kept; medians are shown")
    parser.add_argument(
        "--minutes", type=float, default=ExecutionConfig().checkpoint_minutes, help="between two states"
    )
    parser.add_argument("--folder", type=Path, help="where the states are written; their disk is what is measured")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of Markdown")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        trainer = trained(arguments.width, arguments.layers, arguments.vocabulary)
        row = measured(trainer, StageWorkdir(folder / "bench"), arguments.repeats, arguments.minutes)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(row, indent=2) if arguments.json else markdown(row))


def trained(width: int, layers: int, vocabulary: int) -> Trainer:
    """A trainer after its first step."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // 32),
            num_key_value_heads=max(1, width // 32),
            max_position_embeddings=128,
            tie_word_embeddings=True,
        )
    )
    settings = OptimizerConfig(learning_rate=1e-4, batch_size=len(ROWS))
    trainer = Trainer(Policy(model), settings, total_steps=10, execution=ExecutionConfig())
    trainer.step(ROWS, SupervisedFineTuning())
    return trainer


def measured(trainer: Trainer, workdir: StageWorkdir, repeats: int, minutes: float) -> dict[str, Any]:
    """Keep the trainer's state `repeats` times, each time reading it back."""
    workdir.open("benchmark")
    size, writing, reading = 0, [], []
    for step in range(1, repeats + 1):
        started = time.perf_counter()
        size = workdir.save_state(step, step, lambda folder: write_state(trainer.state(), folder))
        written = time.perf_counter()
        found = workdir.latest_state()
        assert found is not None
        read(found.folder)
        reading.append(time.perf_counter() - written)
        writing.append(written - started)
    return {
        "parameters": sum(p.numel() for p in trainer.module.parameters()),
        "bytes": size,
        "seconds_to_keep": statistics.median(writing),
        "seconds_to_read": statistics.median(reading),
        "minutes_between": minutes,
        "share": statistics.median(writing) / (60 * minutes),
    }


def markdown(row: dict[str, Any]) -> str:
    share = f"of the time, every {row['minutes_between']:g} min"
    return "\n".join(
        [
            f"| parameters | a state | seconds to keep it | seconds to read it | {share} |",
            "|--:|--:|--:|--:|--:|",
            f"| {row['parameters'] / 1e6:.1f}M | {format_bytes(row['bytes'])} | {row['seconds_to_keep']:.2f} "
            f"| {row['seconds_to_read']:.2f} | {100 * row['share']:.2g}% |",
        ]
    )


if __name__ == "__main__":
    main()
