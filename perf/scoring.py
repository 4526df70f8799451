"""Throughput and peak memory of log-prob scoring under two models, beside full logits and TRL's fused head: tokens a
second on one core and bytes above the loaded models, as Markdown.

    python perf/scoring.py --sizes small v32k v128k

Plain is log_softmax over the logits of every position, with the attention that a trial found to be the faster; TRL is
the fused head through which its trainers score. Both take the sequences as they come, padded to the longest of a batch.
In bfloat16 ours casts what a linear layer reads, and theirs is the whole model.
"""

import os
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from side_by_side import (
    DTYPES,
    OURS,
    Program,
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
from sizes import SIZES, network, ragged, response_lengths
from torch import Tensor
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from dpr_core.data.encoding import TokenSequence
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score

Sequences = Sequence[TokenSequence]
Scorer = Callable[[PreTrainedModel, Sequences], list[Tensor]]
"""The log-probs of each response."""

BATCH = 32
DIFFERENCE = {"float32": 1e-3, "bfloat16": 0.2}
"""Of log-probs, at most."""


def ours(model: PreTrainedModel, sequences: Sequences, activations: torch.dtype = torch.float32) -> list[Tensor]:
    rows = score(Policy(model, activations=activations).freeze(), sequences, None).log_probs
    return [row[: len(s.response)] for row, s in zip(rows, sequences, strict=True)]


def padded(sequences: Sequences) -> tuple[Tensor, Tensor, Tensor]:
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
def plain(model: PreTrainedModel, sequences: Sequences) -> list[Tensor]:
    found: list[Tensor] = []
    for start in range(0, len(sequences), BATCH):
        batch = sequences[start : start + BATCH]
        ids, mask, _ = padded(batch)
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        log_probs = torch.log_softmax(logits, dim=-1).gather(-1, ids[:, 1:, None])[..., 0]
        found += [row[len(s.prompt) - 1 : len(s) - 1] for row, s in zip(log_probs, batch, strict=True)]
    return found


@torch.inference_mode()
def trl(model: PreTrainedModel, sequences: Sequences) -> list[Tensor]:
    add_fused_lm_head(model)
    found: list[Tensor] = []
    for start in range(0, len(sequences), BATCH):
        batch = sequences[start : start + BATCH]
        ids, mask, labels = padded(batch)
        log_probs = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True).log_probs
        found += [row[len(s.prompt) - 1 : len(s) - 1] for row, s in zip(log_probs, batch, strict=True)]
    del model.forward
    return found


OTHERS: dict[str, Scorer] = {"plain": plain, "TRL": trl}


def scorer(program: str, dtype: str) -> Scorer:
    return partial(ours, activations=DTYPES[dtype]) if program == OURS else OTHERS[program]


@cache
def loaded(program: str, size: str, dtype: str, attention: str, seed: int = 0) -> PreTrainedModel:
    model = network(size, seed).eval()
    if program != OURS:
        # Ours sets its attention itself.
        model.to(DTYPES[dtype]).set_attn_implementation(attention)
    return model


def prepared(program: str, size: str, dtype: str, attention: str, sequences: Sequences, turn: int) -> Work:
    """Under two models, which are there, and were used, before."""
    models = [loaded(program, size, dtype, attention, seed) for seed in range(2)]
    score, chosen = scorer(program, dtype), sequences if turn else ragged(2, size, responses=(10, 10))

    def work() -> list[int]:
        for model in models:
            score(model, chosen)
        return response_lengths(chosen)

    return work


def faster_attention(size: str, dtype: str) -> str:
    """Of plain scoring, by a short trial."""
    sequences = ragged(4, size, seed=1)
    trial = {each: partial(prepared, "plain", size, dtype, each, sequences) for each in ("sdpa", "eager")}
    timed = in_turn(trial, 1)
    return min(trial, key=lambda each: min(timed.seconds(each)))


def largest_difference(size: str, dtype: str) -> float:
    """From plain scoring in float32."""
    sequences = ragged(4, size, seed=1)
    expected = torch.cat(plain(loaded("plain", size, "float32", "sdpa"), sequences))
    found = [scorer(name, dtype)(loaded(name, size, dtype, "sdpa"), sequences) for name in (OURS, *OTHERS)]
    return max(float((torch.cat(each) - expected).abs().max()) for each in found)


def main() -> None:
    parser = arguments_for(__doc__, ["small", "v32k", "v128k"], list(SIZES))
    parser.add_argument("--sequences", type=int, default=64)
    arguments = parser.parse_args()
    one_core()
    rows, ratios, differences, memory, attention = [], {}, {}, {}, {}
    for size in arguments.sizes:
        programs: dict[str, Program] = {}
        sequences = ragged(arguments.sequences, size)
        for dtype in arguments.dtype:
            found = differences[size + suffix(dtype)] = alone(largest_difference, size, dtype)
            assert found < DIFFERENCE[dtype], f"the programs do not score alike: log-probs are {found:.2g} apart"
            attention[size + suffix(dtype)] = best = faster_attention(size, dtype)
            for name in (OURS, *OTHERS):
                programs[named(name, dtype)] = partial(prepared, name, size, dtype, best, sequences)
        timed = in_turn(programs, arguments.repeats)
        rows += timed.rows(size)
        memory[size] = {name: timed.above(name) for name in programs}
        for dtype in arguments.dtype:
            mine = named(OURS, dtype)
            for name in OTHERS:
                others = beside(name, dtype, arguments.dtype)
                ratios[f"score_vs_{name.lower()}_{size}{suffix(dtype)}"] = timed.ratio(*others, ours=mine)
            plain_takes = memory[size][timed.fastest(*beside("plain", dtype, arguments.dtype))]
            ratios[f"score_memory_plain_over_ours_{size}{suffix(dtype)}"] = plain_takes / memory[size][mine]
    results = {"ratios": ratios, "differences": differences, "attention": attention, "memory": memory}
    print_results({**results, "rows": rows}, arguments)


if __name__ == "__main__":
    main()
