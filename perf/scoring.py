"""Throughput and peak memory of log-prob scoring under two models, beside full logits and TRL's fused head: tokens a
second on one core and bytes above the loaded models, as Markdown.

    python perf/scoring.py --sizes small v32k v128k

Plain is log_softmax over the logits of every position; TRL is the fused head through which its trainers score. Both
take the sequences as they come, padded to the longest of a batch.
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from side_by_side import OURS, in_turn, machine, one_core, print_results
from sizes import SIZES, network, ragged, response_tokens
from torch import Tensor
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from dpr_core.data.encoding import TokenSequence
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score

Scorer = Callable[[PreTrainedModel, Sequence[TokenSequence]], list[Tensor]]
"""The log-probs of each response."""

BATCH = 32


def ours(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> list[Tensor]:
    rows = score(Policy(model), sequences, None).log_probs
    return [row[: len(s.response)] for row, s in zip(rows, sequences, strict=True)]


def padded(sequences: Sequence[TokenSequence]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask, and labels of -100 where there is no response."""
    width = max(map(len, sequences))
    ids, mask = (
        torch.zeros(len(sequences), width, dtype=torch.long),
        torch.zeros(len(sequences), width, dtype=torch.long),
    )
    labels = torch.full((len(sequences), width), -100)
    for i, s in enumerate(sequences):
        ids[i, : len(s)], mask[i, : len(s)] = torch.tensor((*s.prompt, *s.response)), 1
        labels[i, len(s.prompt) : len(s)] = torch.tensor(s.response)
    return ids, mask, labels


@torch.inference_mode()
def plain(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> list[Tensor]:
    found: list[Tensor] = []
    for start in range(0, len(sequences), BATCH):
        batch = sequences[start : start + BATCH]
        ids, mask, _ = padded(batch)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        log_probs = torch.log_softmax(logits, dim=-1).gather(-1, ids[:, 1:, None])[..., 0]
        found += [row[len(s.prompt) - 1 : len(s) - 1] for row, s in zip(log_probs, batch, strict=True)]
    return found


@torch.inference_mode()
def trl(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> list[Tensor]:
    add_fused_lm_head(model)
    found: list[Tensor] = []
    for start in range(0, len(sequences), BATCH):
        batch = sequences[start : start + BATCH]
        ids, mask, labels = padded(batch)
        log_probs = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True).log_probs
        found += [row[len(s.prompt) - 1 : len(s) - 1] for row, s in zip(log_probs, batch, strict=True)]
    del model.forward
    return found


PROGRAMS: dict[str, Scorer] = {OURS: ours, "plain": plain, "TRL": trl}


def status(name: str) -> int:
    """Bytes of this process, from Linux's account of it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def peak(size: str, program: str, count: int) -> int:
    """Bytes above the loaded models; in a process of its own."""
    one_core()
    models = [network(size, seed).eval() for seed in range(2)]
    PROGRAMS[program](models[0], ragged(2, size, responses=(10, 10)))
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    for model in models:
        PROGRAMS[program](model, ragged(count, size))
    return status("VmHWM") - before


def largest_difference(size: str) -> float:
    model, sequences = network(size).eval(), ragged(8, size, seed=1)
    expected = torch.cat(plain(model, sequences))
    return max(float((torch.cat(PROGRAMS[name](model, sequences)) - expected).abs().max()) for name in PROGRAMS)


def work(program: str, models: Sequence[PreTrainedModel], sequences: Sequence[TokenSequence]) -> Callable[[], int]:
    def run() -> int:
        for model in models:
            PROGRAMS[program](model, sequences)
        return response_tokens(sequences)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["small", "v32k", "v128k"], choices=list(SIZES))
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of Markdown")
    arguments = parser.parse_args()
    one_core()
    rows, ratios, differences, memory = [], {}, {}, {}
    for size in arguments.sizes:
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            tasks = [(size, program, arguments.sequences) for program in PROGRAMS]
            memory[size] = dict(zip(PROGRAMS, pool.starmap(peak, tasks, chunksize=1), strict=True))
        differences[size] = largest_difference(size)
        assert differences[size] < 1e-3, "the programs do not score alike"
        sequences = ragged(arguments.sequences, size)
        # Each has models of its own, since ours changes their attention.
        made = {name: work(name, [network(size, seed).eval() for seed in range(2)], sequences) for name in PROGRAMS}
        timed = in_turn({name: lambda run=run: run for name, run in made.items()}, arguments.repeats)
        rows += timed.rows(size)
        ratios[f"score_vs_plain_{size}"] = timed.ratio("plain")
        ratios[f"score_vs_trl_{size}"] = timed.ratio("TRL")
        ratios[f"score_memory_plain_over_ours_{size}"] = memory[size]["plain"] / memory[size][OURS]
    results = {"ratios": ratios, "differences": differences, "memory": memory, "machine": machine(), "rows": rows}
    print_results(results, arguments.json)


if __name__ == "__main__":
    main()
