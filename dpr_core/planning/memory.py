"""Memory of a network in training, scoring and decoding, by part.

The formulas follow the code: weights, gradients and Adam's moments are float32; the head runs in float32 over chunks of
the response tokens; attention never materialises a matrix of all pairs, unless it is `eager`.
"""

import math
from dataclasses import astuple, dataclass, fields
from functools import cached_property

from dpr_core.chunks import rows_of_logits
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.rollouts import Rollouts, VllmConfig
from dpr_core.config.training import LoRAConfig
from dpr_core.planning.architecture import Architecture

FULL, HALF = 4, 2
"""Bytes of a number in float32 and in bfloat16."""

LIVE_CHUNKS = 1
"""Chunks of logits alive in training: logits, exponentials and gradients share one buffer."""

LIVE_CHUNKS_ENTROPY = 2
"""With entropies: the shifted logits and their exponentials."""

LIVE_CHUNKS_DRAW = 3
"""In sampling: logits, the cumulative sum of their softmax, and softmax or log-softmax."""

LIVE_CHUNKS_KL = 4
"""In an exact KL: the logits of two models, those of one less their maximum, and their differences."""

LIVE_CHUNKS_CONTRAST = 5
"""In that of a contrastive policy, whose logits are made of two models'."""


@dataclass(frozen=True)
class MemoryBreakdown:
    """Bytes on one GPU at one moment."""

    weights: float = 0
    gradients: float = 0
    optimizer: float = 0
    """Adam's two moments of every weight."""
    scorers: float = 0
    """Frozen models: the two of the reward, or SFT as the KL's reference."""
    copies: float = 0
    """Other copies of the weights: a moving average, the policy that a guard restores."""
    cache: float = 0
    """The KV cache of a rollout."""
    activations: float = 0
    """Saved activations of the batch, and autocast's copies of the weights."""
    logits: float = 0
    """Logits, and the head's gradient of a micro-batch before it is accumulated."""

    def __add__(self, other: "MemoryBreakdown") -> "MemoryBreakdown":
        return MemoryBreakdown(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def total(self) -> float:
        return float(sum(astuple(self)))

    @property
    def lasting(self) -> float:
        """The parts that do not depend on the batch."""
        return self.weights + self.gradients + self.optimizer + self.scorers + self.copies

    def as_dict(self) -> dict[str, int]:
        return {each.name: round(getattr(self, each.name)) for each in fields(self)}


PARTS = tuple(each.name for each in fields(MemoryBreakdown))


@dataclass(frozen=True)
class NetworkMemory:
    """Bytes of one network, and what training, scoring and decoding need beyond them."""

    architecture: Architecture
    dtype: str
    """The dtype of activations."""
    attention: str
    execution: ExecutionConfig
    longest_prompt: int
    longest_response: int
    on_gpu: bool = True

    @property
    def longest(self) -> int:
        return min(self.longest_prompt + self.longest_response, self.architecture.positions)

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch; a single sequence may be longer."""
        return max(self.execution.tokens_at_once(self.on_gpu), self.longest)

    @property
    def network(self) -> float:
        """The float32 weights of one model."""
        return FULL * self.architecture.parameters

    @property
    def frozen(self) -> float:
        """The weights of a frozen model, whose linear layers are held in the dtype of activations."""
        return self.network - self.casts

    @property
    def critic(self) -> float:
        """The weights of a critic: a policy's body and a head with one output."""
        return FULL * (self.architecture.body + self.architecture.width + 1)

    @property
    def casts(self) -> float:
        """Bfloat16 copies of all matrices, as autocast caches them for training and as a rollout holds them."""
        a = self.architecture
        return HALF * a.layers * a.layer_matrices if self.dtype == "bfloat16" else 0

    def adapters(self, lora: LoRAConfig) -> float:
        """The weights of all adapters: two matrices for each adapted layer."""
        a = self.architecture
        sides = {
            "q_proj": a.width + a.queries,
            "k_proj": a.width + a.keys,
            "v_proj": a.width + a.keys,
            "o_proj": a.queries + a.width,
            **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), a.width + a.feed_forward),
        }
        return FULL * a.layers * lora.rank * sum(sides.get(name, 0) for name in lora.targets)

    def chunk(self, learning: bool) -> float:
        """One chunk of logits, of at most a micro-batch's rows."""
        vocabulary = self.architecture.vocabulary
        rows = rows_of_logits(vocabulary, self.execution.logits_per_chunk, not (learning or self.on_gpu))
        return FULL * min(rows, self.tokens) * vocabulary

    def training(self, adapters: bool = False, entropy: bool = False) -> list[MemoryBreakdown]:
        """The peaks of a forward and backward pass: in the head, in the last layer, and in a tied embedding. With
        adapters, neither head nor embedding has a gradient, and frozen matrices are held rounded."""
        a, tokens = self.architecture, self.tokens
        casts = 0 if adapters else self.casts
        outside = 4 * FULL * a.width * tokens
        """The embedding's output, and the last norm's input and output, of which the response's are gathered."""
        head = 0 if adapters else FULL * a.head
        chunk = self.chunk(learning=True)
        in_head = max(LIVE_CHUNKS * chunk + head, LIVE_CHUNKS_ENTROPY * chunk if entropy else 0)
        # The head's gradient waits for that of the embedding.
        waiting = head if a.tied else 0
        embedding = MemoryBreakdown(logits=waiting + head)
        if not self.execution.gradient_checkpointing:
            held = outside + a.layers * self._saved_by_layer * tokens
            in_layer = self._gradients_in_layer * tokens
            return [
                MemoryBreakdown(activations=casts + held, logits=in_head),
                MemoryBreakdown(activations=casts + held + in_layer, logits=waiting),
                embedding,
            ]
        held = outside + a.layers * FULL * a.width * tokens
        one_layer = (self._saved_by_layer + self._gradients_in_layer) * tokens
        return [
            MemoryBreakdown(activations=held, logits=in_head),
            MemoryBreakdown(activations=casts / a.layers + held + one_layer, logits=waiting),
            MemoryBreakdown(activations=casts + held + self._transient * tokens),
            embedding,
        ]

    def scoring(self, chunks: int = LIVE_CHUNKS) -> list[MemoryBreakdown]:
        """The peaks of a forward pass: in a layer, and in the head."""
        tokens = self.tokens
        return [
            MemoryBreakdown(activations=self._transient * tokens),
            MemoryBreakdown(
                activations=FULL * self.architecture.width * tokens, logits=chunks * self.chunk(learning=False)
            ),
        ]

    def drawing(self, total: int, models: int = 1, learned: bool = False) -> list[MemoryBreakdown]:
        """The peaks of decoding `total` rows with the longest prompts: the masked prefill of all slots, growing the
        last layer's cache, and sampling the last token."""
        a = self.architecture
        rows = min(total, self.execution.rollout_rows)
        prompt = min(self.longest_prompt, a.positions)
        # The cache is as wide as the longest row so far, and freed slots are refilled.
        width = prompt if rows == total else self.longest
        read, full = (models * rows * 2 * self._bytes * a.cached_numbers(tokens) for tokens in (width, self.longest))
        copies = self._drawn_with(models, learned)
        # CUDA graphs hold each model's logits, and those of the capture in their memory pool.
        chunks = max(LIVE_CHUNKS_DRAW, 2 * models) + (2 * models if self.on_gpu and self.execution.graphs else 0)
        return [
            MemoryBreakdown(cache=read, activations=copies + rows * prompt * (self._transient + FULL * prompt)),
            MemoryBreakdown(cache=full + full / models / a.layers, activations=copies),
            MemoryBreakdown(cache=full, activations=copies, logits=chunks * FULL * rows * a.vocabulary),
        ]

    def _drawn_with(self, models: int, learned: bool) -> float:
        """Copies of weights: rounded ones of a network that learns; on a CPU prepacked ones of layers and head."""
        a = self.architecture
        if self.on_gpu:
            return self.casts if learned else 0
        return models * (self._bytes * a.layers * a.layer_matrices + FULL * a.head)

    @property
    def _row(self) -> int:
        """Tokens in a row of attention."""
        return self.tokens if self.execution.packing else self.longest

    @property
    def _masked(self) -> bool:
        """Whether sdpa gets a mask of all pairs in a packed row, which it converts to additive floats."""
        return bool(self.execution.packing) and self.attention == "sdpa"

    @property
    def _bytes(self) -> int:
        return HALF if self.dtype == "bfloat16" else FULL

    @cached_property
    def _saved_by_layer(self) -> float:
        """Bytes that a layer saves per token for the backward pass."""
        a = self.architecture
        # Every norm saves its input and its output before the scale, in float32.
        norms = FULL * (2 * a.norms * a.width + (2 * (a.queries + a.keys) if a.normalises_heads else 0))
        # Three matrices read one norm's output and two another's; autocast casts it for each of them.
        inputs = HALF * 5 * a.width if self.dtype == "bfloat16" else FULL * 2 * a.width
        attention = self._bytes * (2 * a.queries + 2 * a.keys) + FULL * a.heads
        if self.attention == "eager":
            attention += a.heads * self._row * (FULL if self.dtype == "float32" else FULL + HALF)
        elif self._masked:
            attention += self._row * self._bytes
        return norms + inputs + attention + self._bytes * 4 * a.feed_forward

    @cached_property
    def _gradients_in_layer(self) -> float:
        """Bytes that the backward pass of a feed-forward block holds per token."""
        a = self.architecture
        return self._bytes * 3 * a.feed_forward + FULL * 2 * a.width

    @cached_property
    def _transient(self) -> float:
        """Bytes that a forward pass without gradients holds per token, in the larger of a layer's two blocks."""
        a = self.architecture
        stream = FULL * 4 * a.width
        attention = self._bytes * (a.queries + a.keys) + FULL * (3 * a.queries + a.keys)
        if self.attention == "eager":
            attention += 2 * FULL * a.heads * self._row
        elif self._masked:
            attention += self._row * (1 + self._bytes)
        return stream + max(self._bytes * 3 * a.feed_forward, attention)


@dataclass(frozen=True)
class VllmServerShare:
    """The share of a GPU that a vLLM server of a stage takes: weights, and the rest as KV cache."""

    share: float
    weights: float
    """Bytes of all weights, in the dtype of the activations."""
    row: float
    """Bytes of the KV cache of one sequence of the greatest length."""
    rows: int
    """Responses requested at once."""

    @property
    def least(self) -> float:
        """The fewest bytes with which it starts."""
        return self.weights + self.row

    def taken(self, gpu: float) -> float:
        """Bytes that it takes of a GPU with `gpu` bytes."""
        return self.share * gpu

    def fits(self, gpu: float) -> bool:
        return self.least <= self.taken(gpu)

    def least_share(self, gpu: float) -> float:
        """The smallest share that is enough, in hundredths."""
        return math.ceil(100 * self.least / gpu) / 100

    def drawn_at_once(self, gpu: float) -> int:
        """Responses of the greatest length that fit at once; the others are queued."""
        return max(0, min(self.rows, math.floor((self.taken(gpu) - self.weights) / self.row)))

    def as_dict(self, gpu: float) -> dict[str, float | int | bool]:
        return {
            "memory_share": self.share,
            "bytes": round(self.taken(gpu)),
            "weights": round(self.weights),
            "cache": round(self.row * self.rows),
            "least_bytes": round(self.least),
            "rows_at_once": self.drawn_at_once(gpu),
            "fits": self.fits(gpu),
        }


def vllm_server_share(rollouts: Rollouts, memory: NetworkMemory) -> VllmServerShare | None:
    """The share of the server that a stage starts; None where it starts none."""
    if not isinstance(rollouts, VllmConfig) or rollouts.execution.url is not None:
        return None
    number = HALF if memory.dtype == "bfloat16" else FULL
    a = memory.architecture
    row = 2 * number * a.cached_numbers(memory.longest)
    return VllmServerShare(rollouts.execution.memory_share, number * a.parameters, row, memory.execution.rollout_rows)
