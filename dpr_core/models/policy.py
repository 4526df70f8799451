"""A causal language model as a policy: log-probs of response tokens, autocast, and torch.compile of its layers."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from dpr_core.chunks import rows_of_logits
from dpr_core.config.reward import Arithmetic
from dpr_core.data.batching import Batch
from dpr_core.errors import UsageError
from dpr_core.logprobs import (
    OverVocabulary,
    States,
    TokenScores,
    expectation,
    float32_logits,
    on_tensor_cores,
    tf32_head,
    token_scores,
)
from dpr_core.models.oom import BatchLimits
from dpr_core.models.packed_attention import enable_packing, response_hidden_states, uses_packing
from dpr_core.models.sharding import device_of, is_sharded, networks, rounded_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RECOMPILE_LIMIT = 64
"""Compiled variants of one piece of code: trained or frozen, with gradients or without, one row or several, and so on.
torch's own limit of 8, beyond which it runs uncompiled, is meant for a single use of a single model."""


class Policy(nn.Module):
    """A model of one of the four families. The head runs in float32, on response positions only, in chunks."""

    def __init__(
        self,
        model: "PreTrainedModel",
        logits_per_chunk: int = 2**25,
        activations: torch.dtype = torch.float32,
        packing: bool | None = None,
        limits: BatchLimits | None = None,
        tf32_head: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.logits_per_chunk = logits_per_chunk
        self.activations = activations
        self.packing = packing
        self.limits = limits or BatchLimits()
        self.tf32_head = tf32_head
        if packing is not False:
            enable_packing(model)
        softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        if softcap:
            raise UsageError("this model caps its logits, which log-probs here do not allow for; use another backbone")

    def freeze(self, rounded: bool = True) -> Self:
        """Train nothing, and hold linear layers in the dtype of activations unless they are needed as they are."""
        self.requires_grad_(False)
        return self.round_frozen() if rounded else self

    def round_frozen(self) -> Self:
        """Store frozen linear layers in the dtype that autocast would cast them to for each use: bitwise the same
        results from about half of the memory. Embeddings, norms and the head, which it does not cast, stay in float32.
        """
        for _, layer in rounded_layers(self.model, self.activations):
            if layer.weight.dtype != self.activations and not layer.weight.requires_grad:
                layer.to(self.activations)
        return self

    @property
    def packed(self) -> bool:
        """Whether micro-batches are packed, given the model's current device."""
        return uses_packing(self.model, self.device, self.packing)

    @property
    def device(self) -> torch.device:
        return device_of(self)

    @property
    def positions(self) -> int:
        """The context length of the model."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    @property
    def drops_out(self) -> bool:
        """Whether training computes otherwise than scoring and sampling do."""
        adapters = any(isinstance(part, nn.Dropout) and part.p > 0 for part in self.modules())
        return adapters or getattr(self.model.config.get_text_config(), "attention_dropout", 0) > 0

    def check_length(self, tokens: int) -> None:
        """UsageError for sequences beyond the context length."""
        if tokens > self.positions:
            raise UsageError(
                f"sequences of up to {tokens} tokens are more than the model's {self.positions} positions; "
                "lower max_prompt_tokens or max_response_tokens"
            )

    def forward(
        self,
        batch: Batch,
        entropy: bool = False,
        temperature: float = 1.0,
        wanted: "Callable[[Batch], Wanted] | None" = None,
    ) -> TokenScores | Tensor:
        """The scores of the batch's response tokens; or, of what is wanted in the states in front of them, (N,) the
        expectation with the entropy's part."""
        if wanted is None:
            return self.read(self.response_states(batch), batch, entropy, temperature)
        of_vocabulary, entropy_weight = wanted(batch)
        states = self.response_states(batch)
        with autocast(self.activations, self.device), tf32_head(self.tf32_head):
            return expectation(states, of_vocabulary, entropy_weight, temperature, self.rows_of_three(learning=True))

    def read(self, states: States, batch: Batch, entropy: bool = False, temperature: float = 1.0) -> TokenScores:
        """What the head makes of the states in front of the batch's response tokens."""
        hidden, head, bias = states
        with autocast(self.activations, self.device), tf32_head(self.tf32_head):
            return token_scores(
                hidden,
                head,
                batch.targets,
                bias,
                entropy=entropy,
                temperature=temperature,
                logits_per_chunk=self.logits_per_chunk,
            )

    def logits(self, states: States, chunk: slice, temperature: float = 1.0) -> Tensor:
        """(n, V) of a chunk of states, in float32; no gradient."""
        hidden, head, bias = states
        with torch.no_grad(), autocast(self.activations, self.device), tf32_head(self.tf32_head):
            return float32_logits(hidden[chunk], head, bias).div_(temperature)

    def rows_of_three(self, learning: bool) -> int:
        """States whose logits under three models exist at once."""
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        return rows_of_logits(vocabulary, self.logits_per_chunk // 3, self.device.type == "cpu" and not learning)

    def response_states(self, batch: Batch) -> States:
        """The hidden states (N, D) in front of the batch's response tokens, with the head's weight and bias."""
        with autocast(self.activations, self.device, keep_casts=not is_sharded(self)):
            hidden = response_hidden_states(self.model.get_decoder(), batch)
        head = self.model.get_output_embeddings()
        return hidden, head.weight, head.bias


Wanted = tuple[OverVocabulary, float]
"""w and beta of `expectation`, for the states of a batch."""


@contextmanager
def computing_in(arithmetic: Arithmetic | None, *policies: Policy) -> Iterator[None]:
    """A context in which policies compute with activations of another type; None leaves them their own."""
    if arithmetic is None:
        yield
        return
    own = [policy.activations for policy in policies]
    for policy in policies:
        policy.activations = torch.bfloat16 if arithmetic == "bfloat16" else torch.float32
    try:
        with on_tensor_cores(arithmetic == "tf32"):
            yield
    finally:
        for policy, dtype in zip(policies, own, strict=True):
            policy.activations = dtype


def autocast(dtype: torch.dtype, device: torch.device, keep_casts: bool = True) -> AbstractContextManager[object]:
    """Compute with activations in `dtype`. `keep_casts` caches the cast weights for reuse in this context, which for
    gathered (FSDP) weights would be the whole model."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype, cache_enabled=keep_casts)


def compile_layers(module: nn.Module) -> None:
    """torch.compile the decoder layers of a policy or a critic, in place; names of weights stay. Call it after enabling
    gradient checkpointing and after moving or sharding the module.

    It fuses elementwise operations. Layers of one kind share their code across models, with dynamic shapes. Sampling
    runs them `uncompiled`, since every decoded token would have other shapes.
    """
    # Imported here because they take most of a second.
    import torch._dynamo
    from transformers.modeling_layers import GradientCheckpointingLayer

    _check_compiler(next(module.parameters()).device.type)
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    # It would split layers at DDP's bucket boundaries; layers are small enough to overlap without.
    torch._dynamo.config.optimize_ddp = False
    if getattr(module, "packed", False):
        for network in networks(module):
            _disable_compile(network.config._attn_implementation)
    for layer in [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]:
        # A checkpointed layer that contains uncompiled attention cannot be compiled as a whole.
        for part in layer.children() if layer.gradient_checkpointing else [layer]:
            part.compile(dynamic=True)


def uncompiled() -> AbstractContextManager[object]:
    """A context in which compiled layers run eagerly."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@cache
def _disable_compile(attention: str) -> None:
    """Exclude packed attention, which depends on the sequence boundaries: it would recompile for each row."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    disable: Any = torch.compiler.disable
    ALL_ATTENTION_FUNCTIONS.register(attention, disable(ALL_ATTENTION_FUNCTIONS[attention]))


@cache
def _check_compiler(device: str) -> None:
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except RuntimeError as error:
        needed = "Triton, which comes with torch's builds for GPUs," if device == "cuda" else "a C++ compiler (g++)"
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UsageError(
            f"execution.compile: torch {torch.__version__} cannot compile for {device} here ({reason}); "
            f"install {needed} and Python's headers, or leave it out: --set execution.compile=false"
        ) from error
