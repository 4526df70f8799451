"""Sampling with the model in this process: a key-value cache, rows sorted by length, finished rows dropped."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from dpr_core.logprobs import contrastive, float32_logits
from dpr_core.models.memory import as_much_as_fits
from dpr_core.models.policy import computing_in
from dpr_core.rollouts.engine import Completion, Progress, Sampling


@dataclass(frozen=True)
class Against:
    """Contrastive decoding: logits log pi + k (log pi - log pi_reference)."""

    reference: PreTrainedModel
    k: float


class InProcessEngine:
    """Draws with one uniform number a token, fixed in advance by the seed and the row: which rows share a batch, and
    when others finish, does not change what a row samples (beyond rounding)."""

    def __init__(
        self,
        model: PreTrainedModel,
        rows: int = 256,
        activations: torch.dtype = torch.float32,
        against: Against | None = None,
    ) -> None:
        self.model = model
        self.rows = rows
        self.activations = activations
        self.against = against

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
        for model in self._models():
            model.eval()
        uniforms = torch.rand(len(prompts), sampling.max_response_tokens, generator=torch.Generator().manual_seed(seed))
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))

        def draw_all(at_once: int) -> None:
            """Rows that are drawn already stay, and half of an even `at_once` cuts each batch in two."""
            for start in range(0, len(order), at_once):
                rows = [i for i in order[start : start + at_once] if i not in completions]
                if not rows:
                    continue
                with computing_in(self.activations, self.model.device):
                    batch = self._decode([prompts[i] for i in rows], uniforms[rows], sampling)
                completions.update(zip(rows, batch, strict=True))
                if on_progress is not None:
                    on_progress(len(completions), len(prompts))

        longest = max(map(len, prompts), default=0)
        as_much_as_fits(
            "batches of {} rows",
            self.rows,
            1,
            draw_all,
            f"one row of up to {longest} + {sampling.max_response_tokens} tokens",
            "allow shorter answers or prompts",
        )
        return [completions[i] for i in range(len(prompts))]

    def _decode(self, prompts: list[tuple[int, ...]], uniforms: Tensor, sampling: Sampling) -> list[Completion]:
        device = self.model.device
        uniforms = uniforms.to(device)
        ids, mask = _left_padded(prompts, device)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        readers = [_Reader(model) for model in self._models()]
        tokens: list[list[int]] = [[] for _ in prompts]
        log_probs: list[list[float]] = [[] for _ in prompts]
        alive = torch.arange(len(prompts), device=device)
        for t in range(sampling.max_response_tokens):
            logits = self._combined([reader.logits(ids, mask, positions) for reader in readers])
            chosen, chosen_log_probs = draw(logits, uniforms[alive, t], sampling.temperature)
            for row, token, log_prob in zip(alive.tolist(), chosen.tolist(), chosen_log_probs.tolist(), strict=True):
                tokens[row].append(token)
                log_probs[row].append(log_prob)
            going = chosen != sampling.end_token
            if not bool(going.any()):
                break
            ids, positions = chosen[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            if not bool(going.all()):
                keep = going.nonzero()[:, 0]
                for reader in readers:
                    reader.cache.batch_select_indices(keep)
                alive, ids, positions, mask = alive[keep], ids[keep], positions[keep], mask[keep]
        return [
            Completion(prompt, tuple(row), tuple(row_log_probs))
            for prompt, row, row_log_probs in zip(prompts, tokens, log_probs, strict=True)
        ]

    def _models(self) -> list[PreTrainedModel]:
        return [self.model] if self.against is None else [self.model, self.against.reference]

    def _combined(self, logits: list[Tensor]) -> Tensor:
        return logits[0] if self.against is None else contrastive(logits[0], logits[1], self.against.k)


class _Reader:
    """One model with what it remembers of the rows that are still going."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.body: Any = model.get_decoder()
        self.head: Any = model.get_output_embeddings()
        self.cache = DynamicCache(config=model.config)

    def logits(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """(B, V) for the token that comes next."""
        hidden = self.body(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True
        ).last_hidden_state[:, -1]
        return float32_logits(hidden, self.head.weight, self.head.bias)


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


def _left_padded(prompts: list[tuple[int, ...]], device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(len(p) for p in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = torch.tensor(prompt)
        mask[i, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device)
