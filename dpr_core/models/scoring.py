"""Scoring of responses under a policy or critic without gradients: (B, T) log-probs, exact KLs and values."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dpr_core import distributed
from dpr_core.data.batching import Batch, collate
from dpr_core.data.encoding import TokenSequence
from dpr_core.logprobs import TokenScores, token_kl
from dpr_core.masking import response_mask
from dpr_core.models.critic import Critic
from dpr_core.models.extrapolation import ContrastivePolicy
from dpr_core.models.policy import Policy, autocast
from dpr_core.models.sharding import eval_mode


def score(
    policy: Policy,
    sequences: Sequence[TokenSequence],
    tokens_per_micro_batch: int | None,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> TokenScores:
    """(B, T) log-probs, soft values and entropies at a temperature; 0 outside the responses. Dropout is off.

    Micro-batches depend on lengths and budget alone, so two models score the same sequences in the same shapes,
    whatever the number of processes that share the work.
    """
    with eval_mode(policy):
        columns = _score_tokens(
            policy,
            lambda batch: policy(batch, entropy=entropy, temperature=temperature),
            3,
            sequences,
            tokens_per_micro_batch,
            on_progress,
        )
    return TokenScores(*columns)


def state_kl(
    policy: Policy | ContrastivePolicy,
    reference: Policy,
    sequences: Sequence[TokenSequence],
    tokens_per_micro_batch: int | None,
) -> Tensor:
    """(B, T): the exact KL(policy || reference) in the state in front of each response token; 0 outside."""

    def kl(batch: Batch) -> tuple[Tensor]:
        states = policy.response_states(batch), reference.response_states(batch)
        with autocast(reference.activations, reference.device):
            return (token_kl(*states, logits_per_chunk=policy.logits_per_chunk),)

    policies = (policy.sft, policy.reference) if isinstance(policy, ContrastivePolicy) else (policy,)
    with eval_mode(*policies, reference):
        return _score_tokens(policy, kl, 1, sequences, tokens_per_micro_batch)[0]


def score_values(critic: Critic, sequences: Sequence[TokenSequence], tokens_per_micro_batch: int | None) -> Tensor:
    """(B, T): the critic's value of the state in front of each response token; 0 outside the responses."""
    with eval_mode(critic):
        return _score_tokens(critic, lambda batch: (critic(batch),), 1, sequences, tokens_per_micro_batch)[0]


def _score_tokens(
    network: Policy | ContrastivePolicy | Critic,
    compute: Callable[[Batch], Sequence[Tensor]],
    columns: int,
    sequences: Sequence[TokenSequence],
    tokens_per_micro_batch: int | None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """(columns, B, T): the values of `compute` for the response tokens of all sequences, in every process; each process
    computes a share of the micro-batches."""
    mask = response_mask([len(s.response) for s in sequences])

    def fill(batches: list[list[int]]) -> Tensor:
        out = torch.zeros(columns, *mask.shape)
        done = 0
        for rows, is_mine in distributed.shard_work(batches):
            score_values = compute(collate([sequences[row] for row in rows], network.packed).to(network.device))
            if is_mine:
                for table, flat in zip(out, score_values, strict=True):
                    _unflatten(table, mask, rows, flat)
            if on_progress is not None:
                done += distributed.world_size()
                on_progress(sum(map(len, batches[:done])), len(sequences))
        return distributed.all_reduce_sum(out)

    lengths = [len(s) for s in sequences]
    limits, tokens = network.limits, tokens_per_micro_batch
    return limits.in_micro_batches("a scoring pass", lengths, tokens, network.device, fill, network.packed)


def _unflatten(target: Tensor, mask: Tensor, rows: list[int], flat: Tensor) -> None:
    block = torch.zeros(len(rows), mask.shape[1])
    block[mask[rows]] = flat.float().cpu()
    target[rows] = block
