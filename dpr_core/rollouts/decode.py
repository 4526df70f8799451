"""Continuous batching: one token per row and step; slots of finished rows are refilled from the queue of prompts."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dpr_core.rollouts.engine import Completion, Sampling
from dpr_core.rollouts.kv_cache import Spans

REFILL_SHARE = 1 / 8
"""Share of the slots that are free before prompts are prefilled: one by one, each would cost a call of the model."""

AGE_GROUPS = 2
"""Groups of rows by age. Attention reads each group up to its longest row, and old rows are several times as long as
new ones; more groups read less, in more calls."""


class DecoderProtocol(Protocol):
    """See `dpr_core.rollouts.kv_cache.Decoder`."""

    def logits(self, first: int, ids: Tensor, positions: Tensor, last: Tensor, spans: Spans) -> Tensor: ...

    def move(self, source: Tensor, target: Tensor, width: int) -> None: ...


class DecodeLoop:
    """Samples responses to `prompts`, `slots` of them at a time.

    Active rows occupy the first slots, in groups by age, oldest first. A step depends on shapes alone, so it is queued
    without waiting for the device; one synchronisation after it reads which rows have ended.
    """

    def __init__(
        self,
        decoder: DecoderProtocol,
        prompts: Sequence[tuple[int, ...]],
        uniforms: Tensor,
        sampling: Sampling,
        slots: int,
    ) -> None:
        self.decoder = decoder
        self.prompts = prompts
        self.uniforms = uniforms
        self.sampling = sampling
        self.slots = slots
        self.group_size = -(-slots // AGE_GROUPS)
        self.device = uniforms.device
        self.lengths = self._on_device([len(prompt) for prompt in prompts])
        self.tokens = torch.zeros(uniforms.shape, dtype=torch.long, device=self.device)
        self.log_probs = torch.zeros(uniforms.shape, device=self.device)
        self.next_prompt = 0
        """The first prompt that no slot has started."""
        self.row = self._on_device([])
        """(n,) the prompt of each active slot."""
        self.count = self._on_device([])
        """(n,) the length of each response so far."""
        self.sizes: list[int] = []
        """(n,) the length of each row, prompt included."""

    def completions(self) -> Iterator[tuple[int, Completion]]:
        """(index of the prompt, completion) in the order in which rows end."""
        refill = max(1, int(self.slots * REFILL_SHARE))
        while self.next_prompt < len(self.prompts) or len(self.row):
            if self.next_prompt < len(self.prompts) and len(self.row) <= self.slots - refill:
                self._prefill()
            else:
                self._decode()
            yield from self._finished()

    def _prefill(self) -> None:
        """Fill the free slots with prompts, right-padded: the causal mask hides the padding. Of a prompt that several
        rows share, one is read, and its keys and values are copied."""
        first = len(self.row)
        prompts = self.prompts[self.next_prompt : self.next_prompt + self.slots - first]
        rows = torch.arange(self.next_prompt, self.next_prompt + len(prompts), device=self.device)
        self.next_prompt += len(prompts)
        read = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        longest = max(map(len, read))
        ids = self._on_device([[*prompt, *[0] * (longest - len(prompt))] for prompt in read])
        positions = torch.arange(longest, device=self.device).expand(len(read), -1)
        last = self._on_device([len(prompt) - 1 for prompt in read])
        logits = self.decoder.logits(first, ids, positions, last, [(len(read), longest)])
        if len(read) < len(prompts):
            places = self._on_device([read[prompt] for prompt in prompts])
            self.decoder.move(first + places, first + torch.arange(len(prompts), device=self.device), longest)
            logits = logits[places]
        self.row, self.count = torch.cat([self.row, rows]), torch.cat([self.count, torch.zeros_like(rows)])
        self.sizes += [len(prompt) + 1 for prompt in prompts]
        self._sample(first, logits)

    def _decode(self) -> None:
        """One step: feed the last token of every row."""
        last = self.count - 1
        ids, positions = self.tokens[self.row, last][:, None], (self.lengths[self.row] + last)[:, None]
        groups = (self.sizes[start : start + self.group_size] for start in range(0, len(self.sizes), self.group_size))
        spans = [(len(sizes), max(sizes)) for sizes in groups]
        logits = self.decoder.logits(0, ids, positions, torch.zeros_like(last), spans)
        self.sizes = [size + 1 for size in self.sizes]
        self._sample(0, logits)

    def _sample(self, first: int, logits: Tensor) -> None:
        place = self.row[first:], self.count[first:]
        chosen, log_probs = sample(logits, self.uniforms[place], self.sampling.temperature)
        self.tokens[place] = chosen
        self.log_probs[place] = log_probs.float()
        self.count[first:] += 1

    def _finished(self) -> Iterator[tuple[int, Completion]]:
        last = self.tokens[self.row, self.count - 1]
        ended = (last == self.sampling.end_token) | (self.count == self.sampling.max_response_tokens)
        if not bool(ended.any()):
            return
        for row, count in torch.stack([self.row, self.count])[:, ended].T.tolist():
            response, log_probs = self.tokens[row, :count].tolist(), self.log_probs[row, :count].tolist()
            yield row, Completion(self.prompts[row], tuple(response), tuple(log_probs))
        self._compact((~ended).nonzero()[:, 0].tolist())

    def _compact(self, slots: Sequence[int]) -> None:
        """Move the rows of these slots, which are still active, to the front."""
        rows = self.row.tolist()
        order = group_by_age(sorted(slots, key=lambda slot: rows[slot]), self.group_size)
        moves = [(slot, place) for place, slot in enumerate(order) if slot != place]
        if moves:
            source, target = self._on_device(moves).T
            self.decoder.move(source, target, max(self.sizes))
        self.sizes = [self.sizes[slot] for slot in order]
        kept = self._on_device(order)
        self.row, self.count = self.row[kept], self.count[kept]

    def _on_device(self, numbers: Sequence[object]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self.device)


def group_by_age(slots: Sequence[int], size: int) -> list[int]:
    """The slot that each place takes its row from, so that each `size` of `slots` fill the next `size` places, with as
    few moves as possible."""
    order: list[int] = []
    for first in range(0, len(slots), size):
        due = slots[first : first + size]
        places = range(first, first + len(due))
        incoming = iter([slot for slot in due if slot not in places])
        order += [place if place in due else next(incoming) for place in places]
    return order


def sample(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Inverse-CDF sampling: (B,) tokens at `temperature`, and their log-probs there; 0 is greedy, with those at 1."""
    if temperature == 0:
        chosen = logits.argmax(dim=-1)
    else:
        if temperature != 1:
            logits = logits / temperature
        cumulative = torch.softmax(logits, dim=-1).cumsum(dim=-1)
        # Scaling by the last entry keeps rounding from pointing past the vocabulary.
        points = uniforms[:, None] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, points, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    log_probs = torch.log_softmax(logits, dim=-1).gather(-1, chosen[:, None])[:, 0]
    return chosen, log_probs
