"""Bytes, by what they hold. The formulas follow the code: weights, gradients and Adam's moments are float32; the head
runs in float32 over chunks of the response tokens; attention never holds a matrix of all pairs, unless it is `eager`.
"""

from dataclasses import astuple, dataclass, fields
from functools import cached_property

from dpr_core.chunks import rows_of_logits
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.training import LoRAConfig
from dpr_core.planning.architecture import Architecture

FULL, HALF = 4, 2
"""Bytes of a number in float32 and in bfloat16."""

LIVE_CHUNKS = 1
"""Logits of a chunk, which become their exponentials and then their gradients in place."""

LIVE_CHUNKS_ENTROPY = 2
"""The logits below the highest, and their exponentials."""

LIVE_CHUNKS_DRAW = 3
"""Of the next token: logits, the cumulative sum of their softmax, and that or log-softmax."""

LIVE_CHUNKS_KL = 5
"""The logits, log-softmax and terms of two models."""


@dataclass(frozen=True)
class MemoryBreakdown:
    """Bytes on one GPU at one moment."""

    weights: float = 0
    gradients: float = 0
    optimizer: float = 0
    """Adam's two moments of every weight, which are applied in place."""
    scorers: float = 0
    """Frozen models: those of the reward, or SFT to measure the KL to."""
    copies: float = 0
    """Other copies of the weights: a moving average, the policy that a guard goes back to."""
    cache: float = 0
    """Keys and values of the responses that are being drawn."""
    activations: float = 0
    """What the batch leaves behind, and casts of the weights: the backward pass needs them too, as does drawing."""
    logits: float = 0
    """With the head's gradient of a micro-batch, which is not yet added to those before."""

    def __add__(self, other: "MemoryBreakdown") -> "MemoryBreakdown":
        return MemoryBreakdown(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def total(self) -> float:
        return float(sum(astuple(self)))

    @property
    def lasting(self) -> float:
        """What neither the batch nor its lengths change."""
        return self.weights + self.gradients + self.optimizer + self.scorers + self.copies

    def as_dict(self) -> dict[str, int]:
        return {each.name: round(getattr(self, each.name)) for each in fields(self)}


PARTS = tuple(each.name for each in fields(MemoryBreakdown))


@dataclass(frozen=True)
class Memory:
    """What one network needs beyond its weights in each kind of work."""

    architecture: Architecture
    dtype: str
    """Of activations."""
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
        """Of a micro-batch; one sequence may be longer alone."""
        return max(self.execution.tokens_at_once(self.on_gpu), self.longest)

    @property
    def network(self) -> float:
        """One model."""
        return FULL * self.architecture.parameters

    @property
    def frozen(self) -> float:
        """One model that learns nothing: its linear layers are held as autocast would round them."""
        return self.network - self.casts

    @property
    def critic(self) -> float:
        """A policy's body with a head of one row."""
        return FULL * (self.architecture.body + self.architecture.width + 1)

    @property
    def casts(self) -> float:
        """Bfloat16 copies of all matrices: autocast keeps them for a forward pass that is learned from, and for no
        other. So does a rollout for all its tokens."""
        a = self.architecture
        return HALF * a.layers * a.layer_matrices if self.dtype == "bfloat16" else 0

    def adapters(self, lora: LoRAConfig) -> float:
        """Of all layers: two matrices for each one that is adapted."""
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
        """One chunk of logits; a response has no fewer rows than its tokens."""
        vocabulary = self.architecture.vocabulary
        rows = rows_of_logits(vocabulary, self.execution.logits_per_chunk, not (learning or self.on_gpu))
        return FULL * min(rows, self.tokens) * vocabulary

    def training(self, adapters: bool = False) -> list[MemoryBreakdown]:
        """The highest moments of a backward pass: in the head, in the last layer, and in a tied embedding. With
        adapters, neither head nor embedding has a gradient, and what is not trained is rounded already."""
        a, tokens = self.architecture, self.tokens
        casts = 0 if adapters else self.casts
        outside = 4 * FULL * a.width * tokens
        """The embedding's output, and the last norm's input and output, of which the response's are gathered."""
        head = 0 if adapters else FULL * a.head
        in_head = LIVE_CHUNKS * self.chunk(learning=True) + head
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
        """In a layer, and in the head."""
        tokens = self.tokens
        return [
            MemoryBreakdown(activations=self._transient * tokens),
            MemoryBreakdown(
                activations=FULL * self.architecture.width * tokens, logits=chunks * self.chunk(learning=False)
            ),
        ]

    def drawing(self, total: int, models: int = 1, learned: bool = False) -> list[MemoryBreakdown]:
        """Of so many rows with the longest prompts: reading as many as have slots, under a mask; widening the slots of
        the last layer; and drawing the last token. Networks that learn are drawn with in rounded copies."""
        a = self.architecture
        rows = min(total, self.execution.rollout_rows)
        prompt = min(self.longest_prompt, a.positions)
        # Slots are as wide as the longest row so far. Into those that are free again, others are read.
        width = prompt if rows == total else self.longest
        read, full = (models * rows * 2 * self._bytes * a.remembered(tokens) for tokens in (width, self.longest))
        casts = self.casts if learned else 0
        # Graphs leave each model's logits where they are, and those that they were made from in their pool.
        chunks = max(LIVE_CHUNKS_DRAW, 2 * models) + (2 * models if self.on_gpu and self.execution.graphs else 0)
        return [
            MemoryBreakdown(cache=read, activations=casts + rows * prompt * (self._transient + FULL * prompt)),
            MemoryBreakdown(cache=full + full / models / a.layers, activations=casts),
            MemoryBreakdown(cache=full, activations=casts, logits=chunks * FULL * rows * a.vocabulary),
        ]

    @property
    def _row(self) -> int:
        """Tokens that attention compares each with."""
        return self.tokens if self.execution.packing else self.longest

    @property
    def _masked(self) -> bool:
        """Attention is given a mask of all pairs in a row, which it turns into numbers to be added."""
        return bool(self.execution.packing) and self.attention == "sdpa"

    @property
    def _bytes(self) -> int:
        return HALF if self.dtype == "bfloat16" else FULL

    @cached_property
    def _saved_by_layer(self) -> float:
        """What a layer saves of a token for its backward pass."""
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
        """What the backward pass holds of a token on its way through a feed-forward block."""
        a = self.architecture
        return self._bytes * 3 * a.feed_forward + FULL * 2 * a.width

    @cached_property
    def _transient(self) -> float:
        """What a forward pass that saves nothing holds of a token, in the wider of a layer's two blocks."""
        a = self.architecture
        stream = FULL * 4 * a.width
        attention = self._bytes * (a.queries + a.keys) + FULL * (3 * a.queries + a.keys)
        if self.attention == "eager":
            attention += 2 * FULL * a.heads * self._row
        elif self._masked:
            attention += self._row * (1 + self._bytes)
        return stream + max(self._bytes * 3 * a.feed_forward, attention)
