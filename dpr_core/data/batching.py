"""Micro-batches of similar length under a token budget, padded on the right.

Under a causal mask no token attends to what stands on its right, so right padding needs no attention mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpr_core.data.encoding import TokenSequence


@dataclass(frozen=True)
class Batch:
    """`input_ids` (B, L); `predicts` (B, L) is True where the next token is a response token; `targets` (N,) are those
    tokens, row by row."""

    input_ids: Tensor
    predicts: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.input_ids.to(device), self.predicts.to(device), self.targets.to(device))


def collate(sequences: Sequence[TokenSequence]) -> Batch:
    """Pad to the longest; the padding's id is 0, which nothing ever looks at."""
    width = max(len(s) for s in sequences)
    input_ids = torch.zeros(len(sequences), width, dtype=torch.long)
    predicts = torch.zeros(len(sequences), width, dtype=torch.bool)
    for i, s in enumerate(sequences):
        input_ids[i, : len(s)] = torch.tensor((*s.prompt, *s.response))
        predicts[i, len(s.prompt) - 1 : len(s) - 1] = True
    targets = torch.tensor([token for s in sequences for token in s.response], dtype=torch.long)
    return Batch(input_ids, predicts, targets)


def micro_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices sorted by length and cut so that rows x longest stays within the budget (one row may exceed it alone)."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        if batches and (len(batches[-1]) + 1) * lengths[i] <= max_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
