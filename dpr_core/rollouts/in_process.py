"""The in-process engine: sampling from the policy itself, with a KV cache, or contrastively from two models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from dpr_core import distributed
from dpr_core.config.execution import ExecutionConfig
from dpr_core.logprobs import contrastive, tf32_head
from dpr_core.models.oom import BatchLimits
from dpr_core.models.policy import Policy, autocast, uncompiled
from dpr_core.models.prepacked import drawing_copy
from dpr_core.rollouts.cuda_graphs import with_cuda_graphs
from dpr_core.rollouts.decode import DecodeLoop, DecoderProtocol
from dpr_core.rollouts.engine import Completion, OnProgress, Sampling
from dpr_core.rollouts.kv_cache import Decoder, Spans, slot_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WAVE = 8
"""Prompts of a wave, in multiples of the rows sampled at once. Slots are refilled within a wave only, and an
interrupted wave starts over, so that each row has the same neighbours and the same bits."""


@dataclass(frozen=True)
class ContrastiveReference:
    """Contrastive decoding: logits log pi + k (log pi - log pi_reference)."""

    reference: "PreTrainedModel"
    k: float


class InProcessEngine:
    """Samples with one uniform number per token, fixed by the seed and the row: batching, processes and the lengths of
    other rows do not change what a row samples (beyond rounding).

    Each process holds the whole of a sharded model while it samples: rows end at different times, so that processes
    cannot gather layers together.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        rows: int = 256,
        activations: torch.dtype = torch.float32,
        contrast: ContrastiveReference | None = None,
        graphs: bool = False,
        limits: BatchLimits | None = None,
        tf32_head: bool = False,
    ) -> None:
        self.model = model
        self.rows = rows
        self.activations = activations
        self.contrast = contrast
        self.graphs = graphs
        self.limits = limits or BatchLimits()
        self.tf32_head = tf32_head
        self.version = 0

    @classmethod
    def of(cls, policy: Policy, execution: ExecutionConfig, contrast: ContrastiveReference | None = None) -> Self:
        """The engine of a policy under its execution settings."""
        rows, activations, graphs = execution.rollout_rows, policy.activations, execution.graphs
        return cls(policy.model, rows, activations, contrast, graphs, policy.limits, policy.tf32_head)

    def update_weights(self, step: int) -> None:
        """Nothing to copy: the trained model itself is sampled from."""
        self.version = step

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[tuple[int, ...]],
        sampling: Sampling,
        seed: int,
        on_progress: OnProgress | None = None,
        drawn: dict[int, Completion] | None = None,
    ) -> list[Completion]:
        completions = {} if drawn is None else drawn
        sources = [self.model] if self.contrast is None else [self.model, self.contrast.reference]
        models = [drawing_copy(model, self.activations).eval() for model in sources]
        uniforms = self.uniforms(len(prompts), sampling, seed)
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))

        def draw_all(at_once: int) -> None:
            """Sample the missing rows, one wave of similar prompt lengths per process at a time, then gather them. Half
            of an even `at_once` splits each wave in two."""
            step = WAVE * at_once * distributed.world_size()
            for start in range(0, len(order), step):
                rows = [i for i in order[start : start + step] if i not in completions]
                if not rows:
                    continue
                mine = rows[distributed.rank() :: distributed.world_size()]
                if mine:
                    wave = self._wave(models, [prompts[i] for i in mine], uniforms[mine], sampling, at_once)
                    with autocast(self.activations, models[0].device), tf32_head(self.tf32_head):
                        for i, completion in wave.completions():
                            completions[mine[i]] = completion
                completions.update(distributed.all_gather((i, completions[i]) for i in mine))
                if on_progress is not None:
                    # A checkpoint reads weights, and shards cannot be read in inference mode.
                    with torch.inference_mode(False):
                        on_progress(len(completions), len(prompts))

        longest = max(map(len, prompts), default=0)
        with slot_attention(models), uncompiled():
            self.limits.with_oom_backoff(
                "{} rows",
                self.rows,
                1,
                draw_all,
                "rollout_rows",
                f"one row of up to {longest} + {sampling.max_response_tokens} tokens",
                "allow shorter answers or prompts",
            )
        return [completions[i] for i in range(len(prompts))]

    def uniforms(self, rows: int, sampling: Sampling, seed: int) -> Tensor:
        """(rows, tokens) uniform random numbers."""
        return torch.rand(rows, sampling.max_response_tokens, generator=torch.Generator().manual_seed(seed))

    def _wave(
        self,
        models: "Sequence[PreTrainedModel]",
        prompts: Sequence[tuple[int, ...]],
        uniforms: Tensor,
        sampling: Sampling,
        at_once: int,
    ) -> DecodeLoop:
        slots = min(at_once, len(prompts))
        columns = max(map(len, prompts)) + sampling.max_response_tokens
        device = models[0].device
        plain = [Decoder(model, slots, columns) for model in models]
        decoders: Sequence[DecoderProtocol] = (
            with_cuda_graphs(plain, device, self._disable_graphs) if self.graphs else plain
        )
        decoder = (
            decoders[0] if self.contrast is None else _ContrastiveDecoder(decoders[0], decoders[1], self.contrast.k)
        )
        return DecodeLoop(decoder, prompts, uniforms.to(device), sampling, slots)

    def _disable_graphs(self) -> None:
        """Use no graphs from the next wave on, so that a failure is reported once."""
        self.graphs = False


@dataclass(frozen=True)
class _ContrastiveDecoder:
    """Combines the logits of two models over the same rows."""

    model: DecoderProtocol
    reference: DecoderProtocol
    k: float

    def logits(self, first: int, ids: Tensor, positions: Tensor, last: Tensor, spans: Spans) -> Tensor:
        ours, theirs = (each.logits(first, ids, positions, last, spans) for each in (self.model, self.reference))
        return contrastive(ours, theirs, self.k)

    def move(self, source: Tensor, target: Tensor, width: int) -> None:
        self.model.move(source, target, width)
        self.reference.move(source, target, width)
