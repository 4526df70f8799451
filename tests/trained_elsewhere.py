"""A tiny SFT run by Hugging Face's own Trainer, as users have it: checkpoints with tokenizer and trainer's state."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROWS = [
    {"question": f"Start at {i % 5}, add {i % 3}.", "response": f"The answer is {(i + i % 3) % 5}."} for i in range(16)
]


def demonstrations(folder: Path) -> Path:
    """The file of what such a run learned from."""
    file = folder / "demonstrations.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return file


def train(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, **changes: Any) -> Sequence[Path]:
    """Four steps with a checkpoint after the second and the last: the final one, and the reference."""
    from transformers import Trainer, TrainingArguments

    tokenizer.pad_token = tokenizer.eos_token
    ids = [tokenizer(f"{row['question']}\n{row['response']}{tokenizer.eos_token}")["input_ids"] for row in ROWS]
    settings = {
        "max_steps": 4,
        "save_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }
    trainer = Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **{**settings, **changes}),
        train_dataset=[{"input_ids": each, "labels": each} for each in ids],  # type: ignore[arg-type]
        data_collator=lambda rows: tokenizer.pad(rows, return_tensors="pt"),
        processing_class=tokenizer,
    )
    trainer.train()
    return folder / "checkpoint-4", folder / "checkpoint-2"
