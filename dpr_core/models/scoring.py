"""Scores of whole responses under a frozen policy or critic, as (B, T) tensors."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dpr_core.data.batching import collate
from dpr_core.data.encoding import TokenSequence
from dpr_core.logprobs import TokenScores, token_kl
from dpr_core.masking import response_mask
from dpr_core.models.contrastive import Contrasted
from dpr_core.models.critic import Critic
from dpr_core.models.memory import in_micro_batches
from dpr_core.models.policy import Policy


@torch.inference_mode()
def score(
    policy: Policy,
    sequences: Sequence[TokenSequence],
    tokens_per_micro_batch: int | None,
    *,
    entropy: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> TokenScores:
    """(B, T) log-probs at temperature 1, soft values and entropies; 0 outside the responses. Dropout is off.

    Micro-batches depend on lengths and budget alone, so two models score the same sequences in the same shapes.
    """
    policy.eval()
    mask = response_mask([len(s.response) for s in sequences])
    out = TokenScores(*(torch.zeros(mask.shape) for _ in range(3)))

    def fill(batches: list[list[int]]) -> TokenScores:
        done = 0
        for rows in batches:
            scores = policy(collate([sequences[row] for row in rows], policy.packed).to(policy.device), entropy=entropy)
            for column, flat in zip(out, scores, strict=True):
                _unflatten(column, mask, rows, flat)
            done += len(rows)
            if on_progress is not None:
                on_progress(done, len(sequences))
        return out

    return in_micro_batches([len(s) for s in sequences], tokens_per_micro_batch, policy.device, fill, policy.packed)


@torch.inference_mode()
def state_kl(
    policy: Policy | Contrasted,
    reference: Policy,
    sequences: Sequence[TokenSequence],
    tokens_per_micro_batch: int | None,
) -> Tensor:
    """(B, T): the exact KL(policy || reference) in the state in front of each response token; 0 outside."""
    policy.eval()
    reference.eval()
    mask = response_mask([len(s.response) for s in sequences])
    out = torch.zeros(mask.shape)

    def fill(batches: list[list[int]]) -> Tensor:
        for rows in batches:
            batch = collate([sequences[row] for row in rows], policy.packed).to(policy.device)
            states = policy.response_states(batch), reference.response_states(batch)
            kl = token_kl(*states, logits_per_chunk=policy.logits_per_chunk)
            _unflatten(out, mask, rows, kl)
        return out

    return in_micro_batches([len(s) for s in sequences], tokens_per_micro_batch, policy.device, fill, policy.packed)


@torch.inference_mode()
def values(critic: Critic, sequences: Sequence[TokenSequence], tokens_per_micro_batch: int | None) -> Tensor:
    """(B, T): the critic's value of the state in front of each response token; 0 outside the responses."""
    critic.eval()
    mask = response_mask([len(s.response) for s in sequences])
    out = torch.zeros(mask.shape)

    def fill(batches: list[list[int]]) -> Tensor:
        for rows in batches:
            batch = collate([sequences[row] for row in rows], critic.packed).to(critic.device)
            _unflatten(out, mask, rows, critic(batch))
        return out

    return in_micro_batches([len(s) for s in sequences], tokens_per_micro_batch, critic.device, fill, critic.packed)


def _unflatten(target: Tensor, mask: Tensor, rows: list[int], flat: Tensor) -> None:
    block = torch.zeros(len(rows), mask.shape[1])
    block[mask[rows]] = flat.float().cpu()
    target[rows] = block
