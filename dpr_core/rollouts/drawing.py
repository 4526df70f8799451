"""The loop that draws: each round every row gets its next token, and waiting prompts take the places of ended rows."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dpr_core.rollouts.engine import Completion, Sampling

REFILL = 1 / 8
"""Of the places, so many are free when prompts are read into them: one at a time would be a call of the model each."""


class Reads(Protocol):
    """See `dpr_core.rollouts.slots.Reader`."""

    def logits(self, first: int, ids: Tensor, positions: Tensor, last: Tensor, width: int) -> Tensor: ...

    def move(self, source: Tensor, target: Tensor) -> None: ...


class Drawing:
    """Responses to `prompts`, `at_once` of them at a time.

    The rows that are going on are always in the first slots: into the slot of one that ends moves the last of the
    others. Shapes are all that a round needs to know before it begins; whether a row has ended is asked once, after it.
    """

    def __init__(
        self, reader: Reads, prompts: Sequence[tuple[int, ...]], uniforms: Tensor, sampling: Sampling, at_once: int
    ) -> None:
        self.reader = reader
        self.prompts = prompts
        self.uniforms = uniforms
        self.sampling = sampling
        self.at_once = at_once
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
        self.width = 0
        """No row has more tokens than this, its prompt's among them."""

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
        logits = self.reader.logits(first, ids, positions, self.lengths[rows] - 1, longest)
        self.row, self.count = torch.cat([self.row, rows]), torch.cat([self.count, torch.zeros_like(rows)])
        self.width = max(self.width, longest + 1)
        self._draw(first, logits)

    def _go_on(self) -> None:
        """Read the last token of every row."""
        last = self.count - 1
        ids, positions = self.tokens[self.row, last][:, None], (self.lengths[self.row] + last)[:, None]
        logits = self.reader.logits(0, ids, positions, torch.zeros_like(last), self.width)
        self.width += 1
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
        left = len(ended) - int(ended.sum())
        target, source = ended[:left].nonzero()[:, 0], left + (~ended[left:]).nonzero()[:, 0]
        if len(target):
            self.reader.move(source, target)
            self.row[target], self.count[target] = self.row[source], self.count[source]
        self.row, self.count = self.row[:left], self.count[:left]
        self.width = int((self.lengths[self.row] + self.count).max()) if left else 0

    def _on_device(self, numbers: Sequence[object]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self.device)


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
