"""Length-sorted micro-batches under a token budget: right-padded, or packed into one row.

Under a causal mask no token attends to its right, so right padding needs no attention mask. In a packed row the
position ids restart with every sequence, which is how attention finds the boundaries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpr_core.data.encoding import TokenSequence


@dataclass(frozen=True)
class Batch:
    """`input_ids` (B, L); `predicts` (B, L) is True where the next token is a response token; `targets` (N,) are those
    tokens, sequence by sequence; `positions` (1, L) are the position ids of a packed row, and None otherwise."""

    input_ids: Tensor
    predicts: Tensor
    targets: Tensor
    positions: Tensor | None = None

    @property
    def is_packed(self) -> bool:
        return self.positions is not None

    @property
    def lengths(self) -> Tensor:
        """(S,) lengths of the sequences in a packed row."""
        assert self.positions is not None
        starts = (self.positions[0] == 0).nonzero()[:, 0]
        return starts.diff(append=starts.new_tensor([self.positions.shape[1]]))

    def to(self, device: torch.device) -> "Batch":
        positions = None if self.positions is None else self.positions.to(device)
        return Batch(self.input_ids.to(device), self.predicts.to(device), self.targets.to(device), positions)


def collate(sequences: Sequence[TokenSequence], packed: bool = False) -> Batch:
    """Pad to the longest with id 0, which no token attends to; or pack all sequences into one row."""
    width = max(len(s) for s in sequences)
    input_ids = torch.zeros(len(sequences), width, dtype=torch.long)
    predicts = torch.zeros(len(sequences), width, dtype=torch.bool)
    for i, s in enumerate(sequences):
        input_ids[i, : len(s)] = torch.tensor((*s.prompt, *s.response))
        predicts[i, len(s.prompt) - 1 : len(s) - 1] = True
    targets = torch.tensor([token for s in sequences for token in s.response], dtype=torch.long)
    if not packed:
        return Batch(input_ids, predicts, targets)
    positions = torch.arange(width).expand(len(sequences), -1)
    filled = positions < torch.tensor([len(s) for s in sequences])[:, None]
    return Batch(input_ids[filled][None], predicts[filled][None], targets, positions[filled][None])


def micro_batches(lengths: Sequence[int], max_tokens: int, packed: bool = False) -> list[list[int]]:
    """Indices sorted by length and cut so that rows x longest, or packed the sum of lengths, stays within the budget
    (one sequence may exceed it alone)."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    batches: list[list[int]] = [[]]
    tokens = 0
    for i in order:
        tokens = tokens + lengths[i] if packed else (len(batches[-1]) + 1) * lengths[i]
        if tokens > max_tokens and batches[-1]:
            batches.append([])
            tokens = lengths[i]
        batches[-1].append(i)
    return batches if order else []
