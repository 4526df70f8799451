"""Sampling with the model in this process, and with a second one where decoding is contrastive."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from dpr_core import distributed
from dpr_core.config.execution import ExecutionConfig
from dpr_core.logprobs import contrastive
from dpr_core.models.oom import with_oom_backoff
from dpr_core.models.policy import Policy, autocast, uncompiled
from dpr_core.models.sharding import unsharded_copy
from dpr_core.rollouts.cuda_graphs import replaying
from dpr_core.rollouts.decode import DecodeLoop, DecoderProtocol
from dpr_core.rollouts.engine import Completion, Progress, Sampling
from dpr_core.rollouts.kv_cache import Decoder, Spans, attending

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WAVE = 8
"""Times the rows at once, prompts make a wave. A slot is filled again within a wave only, and a wave that was
interrupted is drawn from its start: each row has the neighbours that it would have had, and the same bits."""


@dataclass(frozen=True)
class Against:
    """Contrastive decoding: logits log pi + k (log pi - log pi_reference)."""

    reference: "PreTrainedModel"
    k: float


class InProcessEngine:
    """Draws with one uniform number a token, fixed in advance by the seed and the row: which rows are drawn together,
    by which process, and when others finish, does not change what a row samples (beyond rounding).

    Where the model is sharded, each process holds all of it for as long as it draws: rows end at different times, so
    that processes cannot gather layers together.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        rows: int = 256,
        activations: torch.dtype = torch.float32,
        against: Against | None = None,
        graphs: bool = True,
    ) -> None:
        self.model = model
        self.rows = rows
        self.activations = activations
        self.against = against
        self.graphs = graphs
        self.version = 0

    @classmethod
    def of(cls, policy: Policy, execution: ExecutionConfig, against: Against | None = None) -> Self:
        """As the settings say."""
        return cls(policy.model, execution.rollout_rows, policy.activations, against, execution.graphs)

    def refresh(self, version: int) -> None:
        """The model that draws is the one that learns."""
        self.version = version

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[tuple[int, ...]],
        sampling: Sampling,
        seed: int,
        on_progress: Progress | None = None,
        drawn: dict[int, Completion] | None = None,
    ) -> list[Completion]:
        completions = {} if drawn is None else drawn
        read = [self.model] if self.against is None else [self.model, self.against.reference]
        models = [unsharded_copy(model, activations=self.activations).eval() for model in read]
        uniforms = self.uniforms(len(prompts), sampling, seed)
        order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))

        def draw_all(at_once: int) -> None:
            """Rows that are drawn already stay, and half of an even `at_once` cuts each wave in two. Processes draw one
            wave each, of prompts of like lengths, and then have what all of them drew."""
            step = WAVE * at_once * distributed.world_size()
            for start in range(0, len(order), step):
                rows = [i for i in order[start : start + step] if i not in completions]
                if not rows:
                    continue
                mine = rows[distributed.rank() :: distributed.world_size()]
                if mine:
                    wave = self._wave(models, [prompts[i] for i in mine], uniforms[mine], sampling, at_once)
                    with autocast(self.activations, models[0].device):
                        for i, completion in wave.completions():
                            completions[mine[i]] = completion
                completions.update(distributed.all_gather((i, completions[i]) for i in mine))
                if on_progress is not None:
                    # Who keeps a state now reads weights, and slices cannot be read in inference mode.
                    with torch.inference_mode(False):
                        on_progress(len(completions), len(prompts))

        longest = max(map(len, prompts), default=0)
        with attending(models), uncompiled():
            with_oom_backoff(
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
        """One number for each token of each row."""
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
        readers: Sequence[DecoderProtocol] = replaying(plain, device, self._without_graphs) if self.graphs else plain
        reader = readers[0] if self.against is None else _Contrast(readers[0], readers[1], self.against.k)
        return DecodeLoop(reader, prompts, uniforms.to(device), sampling, slots)

    def _without_graphs(self) -> None:
        """From the next wave on: what did not work once is not tried, and told of, again and again."""
        self.graphs = False


@dataclass(frozen=True)
class _Contrast:
    """Two models that read the same rows."""

    model: DecoderProtocol
    reference: DecoderProtocol
    k: float

    def logits(self, first: int, ids: Tensor, positions: Tensor, last: Tensor, spans: Spans) -> Tensor:
        ours, theirs = (each.logits(first, ids, positions, last, spans) for each in (self.model, self.reference))
        return contrastive(ours, theirs, self.k)

    def move(self, source: Tensor, target: Tensor, width: int) -> None:
        self.model.move(source, target, width)
        self.reference.move(source, target, width)
