"""A causal language model seen as a policy: token sequences in, one score for each response token out."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Self

import torch
from torch import nn

from dpr_core.data.batching import Batch
from dpr_core.errors import UsageError
from dpr_core.logprobs import States, TokenScores, token_scores
from dpr_core.models.packed_attention import adopt, packs, states
from dpr_core.models.sharding import device_of, is_sharded, rounded_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Policy(nn.Module):
    """Wraps any of the four families. The head is applied to response positions only, in float32, chunk by chunk."""

    def __init__(
        self,
        model: "PreTrainedModel",
        logits_per_chunk: int = 2**25,
        activations: torch.dtype = torch.float32,
        packing: bool | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.logits_per_chunk = logits_per_chunk
        self.activations = activations
        self.packing = packing
        if packing is not False:
            adopt(model)
        softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        if softcap:
            raise UsageError("this model caps its logits, which log-probs here do not allow for; use another backbone")

    def freeze(self) -> Self:
        """Train nothing, and hold rounded what is only ever used rounded."""
        self.requires_grad_(False)
        return self.round_frozen()

    def round_frozen(self) -> Self:
        """Under autocast every linear layer rounds its weights for each use. With the rounded ones kept in place of
        those that are not trained, results are the same bit by bit, from about half of the memory. Embeddings, norms
        and the head, which are not rounded, stay as they are.
        """
        for _, layer in rounded_layers(self.model, self.activations):
            if layer.weight.dtype != self.activations and not layer.weight.requires_grad:
                layer.to(self.activations)
        return self

    @property
    def packed(self) -> bool:
        """Where the model is now decides."""
        return packs(self.model, self.device, self.packing)

    @property
    def device(self) -> torch.device:
        return device_of(self)

    @property
    def positions(self) -> int:
        """The longest sequence that the model can read."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    def check_length(self, tokens: int) -> None:
        """Refuse sequences that are longer than the model has positions."""
        if tokens > self.positions:
            raise UsageError(
                f"sequences of up to {tokens} tokens are more than the model's {self.positions} positions; "
                "lower max_prompt_tokens or max_response_tokens"
            )

    def forward(self, batch: Batch, entropy: bool = False) -> TokenScores:
        hidden, head, bias = self.response_states(batch)
        chunk = self.logits_per_chunk
        with computing_in(self.activations, self.device):
            return token_scores(hidden, head, batch.targets, bias, entropy=entropy, logits_per_chunk=chunk)

    def response_states(self, batch: Batch) -> States:
        """The hidden states (N, D) that predict the batch's response tokens, with the head's weight and bias."""
        with computing_in(self.activations, self.device, keep_casts=not is_sharded(self)):
            hidden = states(self.model.get_decoder(), batch)
        head = self.model.get_output_embeddings()
        return hidden, head.weight, head.bias


def computing_in(dtype: torch.dtype, device: torch.device, keep_casts: bool = True) -> AbstractContextManager[object]:
    """Activations in `dtype`, whatever the type of the weights. Rounded weights are kept to be used again while this
    lasts, which for weights that are gathered would be the whole model."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype, cache_enabled=keep_casts)
