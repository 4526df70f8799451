"""Mixed precision on real weights: what a small step does to log-probs, and what rounding does to the reward.

    python perf/precision.py BACKBONE DEMONSTRATIONS HELD_OUT

BACKBONE is a folder of a pretrained model, the others are JSONL files with `prompt` or `question`, and `response`. The
first table has the mean change of log pi on a few demonstrations after one step of their gradient's sign on float32
weights, seen by a float32 and by a bfloat16 forward pass; the second the reward of two checkpoints of a short SFT on
held-out rows, by type. Figures are printed as Markdown.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dpr_core.config.model import PretrainedBackboneConfig
from dpr_core.config.reward import Arithmetic
from dpr_core.data.batching import collate
from dpr_core.data.encoding import TokenSequence, encode_prompt, encode_response
from dpr_core.diagnostics import shape
from dpr_core.diagnostics.rounding import rounding_shares
from dpr_core.models.checkpoints import load_backbone
from dpr_core.models.dense_reward import TokenReward
from dpr_core.models.policy import Policy, computing_in
from dpr_core.models.scoring import score
from dpr_core.models.weights import share_of_ties

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TYPES: tuple[Arithmetic, ...] = ("float32", "bfloat16")
PROBES, BATCH, STEPS, HELD_OUT = 6, 8, 8, 48
RATES = (5e-7, 5e-6, 2e-5)
SFT_RATE, LATE_RATE = 1e-5, 4e-6


def sequences(tokenizer: "PreTrainedTokenizerBase", file: Path, count: int) -> list[TokenSequence]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:count]]
    return [
        TokenSequence(
            encode_prompt(tokenizer, row.get("prompt", row.get("question")) + "\n"),
            encode_response(tokenizer, row["response"]),
        )
        for row in rows
    ]


def mean_log_prob(policy: Policy, rows: list[TokenSequence], arithmetic: Arithmetic) -> float:
    with computing_in(arithmetic, policy):
        scores = score(policy, rows, 1024).log_probs
    return float(scores.sum() / sum(len(row.response) for row in rows))


def gradient(policy: Policy, rows: list[TokenSequence]) -> None:
    policy.zero_grad()
    scores = policy(collate(rows, policy.packed))
    (-scores.log_probs.mean()).backward()


@contextmanager
def stepped(policy: Policy, rate: float) -> Iterator[None]:
    """One step of the gradient's sign, taken back in the end."""
    before = [weight.detach().clone() for weight in policy.parameters()]
    with torch.no_grad():
        for weight in policy.parameters():
            weight.sub_(rate * weight.grad.sign() if weight.grad is not None else 0)
    yield
    with torch.no_grad():
        for weight, values in zip(policy.parameters(), before, strict=True):
            weight.copy_(values)


def changes(policy: Policy, rows: list[TokenSequence], rates: tuple[float, ...]) -> Iterator[tuple[float, list[float]]]:
    start = [mean_log_prob(policy, rows, each) for each in TYPES]
    gradient(policy, rows)
    for rate in rates:
        with stepped(policy, rate):
            after = [mean_log_prob(policy, rows, each) for each in TYPES]
        yield rate, [b - a for a, b in zip(start, after, strict=True)]


def show(start: str, policy: Policy, rows: list[TokenSequence], rates: tuple[float, ...]) -> None:
    for rate, (float32, bfloat16) in changes(policy, rows, rates):
        print(f"| {start} | {rate:g} | {float32:+.4f} | {bfloat16:+.4f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone")
    parser.add_argument("demonstrations", type=Path)
    parser.add_argument("held_out", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    backbone = PretrainedBackboneConfig(name=given.backbone, dtype="float32")
    model, tokenizer = load_backbone(backbone)
    policy, probes = Policy(model), sequences(tokenizer, given.demonstrations, PROBES)
    as_stored = {name: weight.clone() for name, weight in model.state_dict().items()}

    print("| weights at the start | step | float32 | bfloat16 |\n|---|---|---|---|")
    show(f"as stored, {share_of_ties(model):.1%} of them ties", policy, probes, RATES)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.bfloat16())
    show("rounded to bfloat16", policy, probes, RATES)
    model.load_state_dict(as_stored)

    rows = sequences(tokenizer, given.demonstrations, PROBES + BATCH * STEPS)[PROBES:]
    optimizer = torch.optim.AdamW(policy.parameters(), SFT_RATE, weight_decay=0.0)
    reference = load_backbone(backbone)[0]
    for step in range(STEPS):
        gradient(policy, rows[step * BATCH : (step + 1) * BATCH])
        optimizer.step()
        if step + 1 == STEPS // 2:
            reference.load_state_dict(model.state_dict())
    show(f"after {STEPS} steps of SFT at {SFT_RATE:g}", policy, probes, (LATE_RATE,))

    held_out = sequences(tokenizer, given.held_out, HELD_OUT)
    reward = TokenReward(policy, Policy(reference), "baseline_relative", 1024, keep_weights=True)
    shares = rounding_shares(reward, held_out, TYPES)
    print("\n| reward of two checkpoints | deviation | rounding | batch shape |\n|---|---|---|---|")
    for arithmetic in TYPES:
        in_type = replace(reward, arithmetic=arithmetic)
        scored, alone = in_type(held_out), replace(in_type, tokens_per_micro_batch=1)(held_out)
        deviation = shape.standard_deviation(scored.rewards, scored.mask)
        noise = shape.root_mean_square(scored.rewards - alone.rewards, scored.mask)
        print(f"| {arithmetic} | {deviation:.4f} | {shares[arithmetic]:.3f} | {noise / deviation:.3f} |", flush=True)


if __name__ == "__main__":
    main()
