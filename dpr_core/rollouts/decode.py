"""The loop that draws: each round every row gets its next token, and waiting prompts take the places of ended rows."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dpr_core.rollouts.engine import Completion, Sampling
from dpr_core.rollouts.kv_cache import Spans

REFILL = 1 / 8
"""Of the places, so many are free when prompts are read into them: one at a time would be a call of the model each."""

SPANS = 2
"""Rows are in so many groups by age, each of which is read as far as its longest row: old rows are several times as
long as new ones. More groups read less, in more calls."""


class DecoderProtocol(Protocol):
    """See `dpr_core.rollouts.kv_cache.Decoder`."""

    def logits(self, first: int, ids: Tensor, positions: Tensor, last: Tensor, spans: Spans) -> Tensor: ...

    def move(self, source: Tensor, target: Tensor, width: int) -> None: ...


class DecodeLoop:
    """Responses to `prompts`, `at_once` of them at a time.

    The rows that are going on are always in the first slots, and in groups by age, the first of which has the prompts
    that were read first. Shapes are all that a round needs to know before it begins; whether a row has ended is asked
    once, after it.
    """

    def __init__(
        self,
        reader: DecoderProtocol,
        prompts: Sequence[tuple[int, ...]],
        uniforms: Tensor,
        sampling: Sampling,
        at_once: int,
    ) -> None:
        self.reader = reader
        self.prompts = prompts
        self.uniforms = uniforms
        self.sampling = sampling
        self.at_once = at_once
        self.group = -(-at_once // SPANS)
        self.device = uniforms.device
        self.lengths = self._on_device([len(prompt) for prompt in prompts])
        self.tokens = torch.zeros(uniforms.shape, dtype=torch.long, device=self.device)
        self.log_probs = torch.zeros(uniforms.shape, device=self.device)
        self.waiting = 0
        """The first prompt that no slot has had yet."""
        self.row = self._on_device([])
        """(n,) which prompt each slot answers."""
        self.count = self._on_device([])
        """(n,) how many tokens of the response there are."""
        self.sizes: list[int] = []
        """(n,) how many tokens there are with those of the prompt."""

    def completions(self) -> Iterator[tuple[int, Completion]]:
        """Each with the number of its prompt, in the order in which they end."""
        room = max(1, int(self.at_once * REFILL))
        while self.waiting < len(self.prompts) or len(self.row):
            if self.waiting < len(self.prompts) and len(self.row) <= self.at_once - room:
                self._read()
            else:
                self._go_on()
            yield from self._ended()

    def _read(self) -> None:
        """Fill the free slots: prompts are padded to the right, where a causal mask hides the padding."""
        first = len(self.row)
        prompts = self.prompts[self.waiting : self.waiting + self.at_once - first]
        rows = torch.arange(self.waiting, self.waiting + len(prompts), device=self.device)
        self.waiting += len(prompts)
        longest = max(map(len, prompts))
        ids = self._on_device([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts])
        positions = torch.arange(longest, device=self.device).expand(len(prompts), -1)
        logits = self.reader.logits(first, ids, positions, self.lengths[rows] - 1, [(len(prompts), longest)])
        self.row, self.count = torch.cat([self.row, rows]), torch.cat([self.count, torch.zeros_like(rows)])
        self.sizes += [len(prompt) + 1 for prompt in prompts]
        self._draw(first, logits)

    def _go_on(self) -> None:
        """Read the last token of every row."""
        last = self.count - 1
        ids, positions = self.tokens[self.row, last][:, None], (self.lengths[self.row] + last)[:, None]
        groups = (self.sizes[start : start + self.group] for start in range(0, len(self.sizes), self.group))
        spans = [(len(sizes), max(sizes)) for sizes in groups]
        logits = self.reader.logits(0, ids, positions, torch.zeros_like(last), spans)
        self.sizes = [size + 1 for size in self.sizes]
        self._draw(0, logits)

    def _draw(self, first: int, logits: Tensor) -> None:
        place = self.row[first:], self.count[first:]
        chosen, log_probs = draw(logits, self.uniforms[place], self.sampling.temperature)
        self.tokens[place] = chosen
        self.log_probs[place] = log_probs.float()
        self.count[first:] += 1

    def _ended(self) -> Iterator[tuple[int, Completion]]:
        last = self.tokens[self.row, self.count - 1]
        ended = (last == self.sampling.end_token) | (self.count == self.sampling.max_response_tokens)
        if not bool(ended.any()):
            return
        for row, count in torch.stack([self.row, self.count])[:, ended].T.tolist():
            response, log_probs = self.tokens[row, :count].tolist(), self.log_probs[row, :count].tolist()
            yield row, Completion(self.prompts[row], tuple(response), tuple(log_probs))
        self._close_ranks((~ended).nonzero()[:, 0].tolist())

    def _close_ranks(self, slots: Sequence[int]) -> None:
        """Only the rows in these slots go on."""
        rows = self.row.tolist()
        order = in_groups(sorted(slots, key=lambda slot: rows[slot]), self.group)
        moves = [(slot, place) for place, slot in enumerate(order) if slot != place]
        if moves:
            source, target = self._on_device(moves).T
            self.reader.move(source, target, max(self.sizes))
        self.sizes = [self.sizes[slot] for slot in order]
        kept = self._on_device(order)
        self.row, self.count = self.row[kept], self.count[kept]

    def _on_device(self, numbers: Sequence[object]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self.device)


def in_groups(slots: Sequence[int], size: int) -> list[int]:
    """Which slot each place gets its row from, so that the first `size` of `slots` are in the first `size` places, the
    next ones in the next places, and so on. Those that are in such a place already stay there."""
    order: list[int] = []
    for first in range(0, len(slots), size):
        due = slots[first : first + size]
        places = range(first, first + len(due))
        coming = iter([slot for slot in due if slot not in places])
        order += [place if place in due else next(coming) for place in places]
    return order


def draw(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Tokens (B,) by inversion of the cumulative distribution at `temperature` (0 is greedy), and their log-probs at
    temperature 1."""
    if temperature == 0:
        chosen = logits.argmax(dim=-1)
    else:
        cumulative = torch.softmax(logits / temperature, dim=-1).cumsum(dim=-1)
        # Scaling by the last entry keeps rounding from ever pointing past the vocabulary.
        points = uniforms[:, None] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, points, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    log_probs = torch.log_softmax(logits, dim=-1).gather(-1, chosen[:, None])[:, 0]
    return chosen, log_probs
