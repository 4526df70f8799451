"""Hours of a stage: FLOPs and memory traffic over the peak throughput of a GPU."""

import difflib
import math
from dataclasses import astuple, dataclass

from dpr_core.errors import UsageError
from dpr_core.planning.architecture import Architecture

AS_OF = "2025-06"
"""Date of the vendors' numbers below, from memory: they were not compared with the data sheets."""

RESERVED = 0.1
"""Share of a GPU's memory for the CUDA context, kernel workspaces and fragmentation."""


@dataclass(frozen=True)
class Gpu:
    """Peak throughput for dense matrices; float32 without tensor cores."""

    name: str
    gigabytes: float
    """Of 2^30 bytes."""
    bfloat16_teraflops: float
    float32_teraflops: float
    gigabytes_per_second: float
    """Memory bandwidth, of 10^9 bytes."""

    @property
    def memory(self) -> float:
        """Total memory in bytes."""
        return self.gigabytes * 2**30

    @property
    def usable(self) -> float:
        """Bytes that a stage can use."""
        return self.memory * (1 - RESERVED)

    def teraflops(self, dtype: str) -> float:
        return self.bfloat16_teraflops if dtype == "bfloat16" else self.float32_teraflops

    def head_teraflops(self, dtype: str, tf32: bool = False) -> float:
        """The head is float32, or under bfloat16 TensorFloat-32 where that is asked for, at half bfloat16's speed."""
        return self.bfloat16_teraflops / 2 if tf32 and dtype == "bfloat16" else self.float32_teraflops


GPUS: dict[str, Gpu] = {
    "h200": Gpu("H200 SXM", 141, 989, 67, 4800),
    "h100": Gpu("H100 SXM", 80, 989, 67, 3350),
    "h100-pcie": Gpu("H100 PCIe", 80, 756, 51, 2000),
    "a100": Gpu("A100 SXM 80 GB", 80, 312, 19.5, 2039),
    "a100-40": Gpu("A100 SXM 40 GB", 40, 312, 19.5, 1555),
    "l40s": Gpu("L40S", 48, 362, 91.6, 864),
    "a10": Gpu("A10", 24, 125, 31.2, 600),
    "l4": Gpu("L4", 24, 121, 30.3, 300),
    "4090": Gpu("RTX 4090", 24, 165, 82.6, 1008),
}


def gpu_named(name: str) -> Gpu:
    """The GPU of that name; UsageError with the nearest known name."""
    if (found := GPUS.get(name.lower())) is not None:
        return found
    near = difflib.get_close_matches(name.lower(), GPUS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(f"there is no GPU {name!r} in the table; {hint}GPUs: {', '.join(GPUS)}")


UTILISATION = 0.4
"""Share of the peak operations, and of the peak bandwidth, that is assumed to be reached."""


@dataclass(frozen=True)
class StageWork:
    """FLOPs and memory traffic of a stage; a multiply-add is two operations."""

    tokens: float = 0
    """Tokens through a trained or sampled network, counted for each pass."""
    body: float = 0
    """Operations below the head, in the dtype of the activations."""
    head: float = 0
    """Operations of the head, in float32 or in TensorFloat-32 (`execution.tf32_head`)."""
    read: float = 0
    """Bytes of weights and of keys and values that decoding reads."""

    def __add__(self, other: "StageWork") -> "StageWork":
        return StageWork(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> "StageWork":
        return StageWork(*(each * times for each in astuple(self)))

    @property
    def operations(self) -> float:
        return self.body + self.head

    def hours(self, gpu: Gpu, dtype: str, utilisation: float, tf32_head: bool = False) -> float:
        """Compute time plus memory time: decoding is bound by bandwidth, everything else by compute."""
        computing = self.body / gpu.teraflops(dtype) + self.head / gpu.head_teraflops(dtype, tf32_head)
        seconds = computing / (utilisation * 1e12) + self.read / (utilisation * gpu.gigabytes_per_second * 1e9)
        return seconds / 3600


@dataclass(frozen=True)
class Sequences:
    """A number of sequences and their mean lengths in tokens."""

    count: float
    prompt: float
    response: float

    @property
    def length(self) -> float:
        return self.prompt + self.response


def forward(architecture: Architecture, sequences: Sequences) -> StageWork:
    """A forward pass: all matrices for every token, causal attention, and the head for response tokens only."""
    a, n, tokens = architecture, sequences.count, sequences.length
    matrices = 2 * a.layers * a.layer_matrices * tokens
    windowed = min(a.window or tokens, tokens)
    # A causal token attends to half of the sequence on average; scores and weighted values are two products.
    pairs = (a.layers - a.windowed_layers) * tokens**2 / 2
    pairs += a.windowed_layers * (windowed * tokens - windowed**2 / 2)
    attention = 4 * a.queries * pairs
    return StageWork(n * tokens, n * (matrices + attention), n * 2 * a.head * sequences.response)


def training(
    architecture: Architecture, sequences: Sequences, checkpointing: bool, chunks: bool, adapters: bool = False
) -> StageWork:
    """Forward, and backward at twice its cost, or once for adapters alone. Checkpointed activations are recomputed, and
    logits where they come in several chunks."""
    once, passes = forward(architecture, sequences), 2 if adapters else 3
    return StageWork(once.tokens, once.body * (passes + checkpointing), once.head * (passes + chunks))


def drawing(architecture: Architecture, sequences: Sequences, rows: int, steps: float, halved: bool) -> StageWork:
    """Decoding: each step reads the weights once for all rows, and the keys and values of each row. A batch runs for
    `steps` tokens, the length of its longest response."""
    a = architecture
    batches = math.ceil(sequences.count / rows)
    number = 2 if halved else 4
    weights = number * a.layers * a.layer_matrices + 4 * a.head
    mean_length = sequences.prompt + sequences.response / 2
    cached = 2 * number * a.cached_numbers(round(mean_length)) * sequences.response * sequences.count
    return forward(a, sequences) + StageWork(read=batches * steps * weights + cached)
