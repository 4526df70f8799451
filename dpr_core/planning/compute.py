"""Operations, bytes read, and the hours that they take."""

import math
from dataclasses import astuple, dataclass

from dpr_core.planning.architecture import Architecture
from dpr_core.planning.hardware import Gpu

UTILISATION = 0.4
"""Share of the peak operations, and of the peak bandwidth, that is assumed to be reached."""


@dataclass(frozen=True)
class StageWork:
    """What is to be done. Multiplying and adding are two operations."""

    tokens: float = 0
    """That go through a trained or drawing network: prompts and responses, each time that they do."""
    body: float = 0
    """Operations in the type of the activations."""
    head: float = 0
    """Operations of the head, in float32, or in TensorFloat-32 where activations are in bfloat16."""
    read: float = 0
    """Bytes of weights and of keys and values that drawing reads, token by token."""

    def __add__(self, other: "StageWork") -> "StageWork":
        return StageWork(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> "StageWork":
        return StageWork(*(each * times for each in astuple(self)))

    @property
    def operations(self) -> float:
        return self.body + self.head

    def hours(self, gpu: Gpu, dtype: str, utilisation: float) -> float:
        """Reading and computing do not overlap while single tokens are drawn: reading is what limits that."""
        computing = self.body / gpu.teraflops(dtype) + self.head / gpu.head_teraflops(dtype)
        seconds = computing / (utilisation * 1e12) + self.read / (utilisation * gpu.gigabytes_per_second * 1e9)
        return seconds / 3600


@dataclass(frozen=True)
class Sequences:
    """So many, of this many tokens on average."""

    count: float
    prompt: float
    response: float

    @property
    def length(self) -> float:
        return self.prompt + self.response


def forward(architecture: Architecture, sequences: Sequences) -> StageWork:
    """One pass: every matrix for every token, attention to all tokens before, and the head for the response alone."""
    a, n, tokens = architecture, sequences.count, sequences.length
    matrices = 2 * a.layers * a.layer_matrices * tokens
    windowed = min(a.window or tokens, tokens)
    # A causal row sees half of the sequence on average; scores and their use are two products.
    seen = (a.layers - a.windowed_layers) * tokens**2 / 2
    seen += a.windowed_layers * (windowed * tokens - windowed**2 / 2)
    attention = 4 * a.queries * seen
    return StageWork(n * tokens, n * (matrices + attention), n * 2 * a.head * sequences.response)


def training(
    architecture: Architecture, sequences: Sequences, checkpointing: bool, chunks: bool, adapters: bool = False
) -> StageWork:
    """Forward and twice as much backward, or once where adapters learn alone; what was not saved is computed again, as
    are logits of several chunks."""
    once, passes = forward(architecture, sequences), 2 if adapters else 3
    return StageWork(once.tokens, once.body * (passes + checkpointing), once.head * (passes + chunks))


def drawing(architecture: Architecture, sequences: Sequences, rows: int, steps: float, halved: bool) -> StageWork:
    """A forward pass in which every token after the first reads the weights once for all rows at once, and the row's
    keys and values. A batch of rows goes on for `steps` tokens: to the end of its longest response."""
    a = architecture
    batches = math.ceil(sequences.count / rows)
    number = 2 if halved else 4
    weights = number * a.layers * a.layer_matrices + 4 * a.head
    middle = sequences.prompt + sequences.response / 2
    remembered = 2 * number * a.remembered(round(middle)) * sequences.response * sequences.count
    return forward(a, sequences) + StageWork(read=batches * steps * weights + remembered)
