"""Scoring of responses under a policy or critic without gradients: (B, T) log-probs, exact KLs and values."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dpr_core import distributed
from dpr_core.data.batching import Batch, collate
from dpr_core.data.encoding import TokenSequence
from dpr_core.logprobs import Contrast, States, TokenScores, log_probs_of, scores_and_kl, tf32_head
from dpr_core.masking import response_mask
from dpr_core.models.critic import Critic
from dpr_core.models.extrapolation import ContrastivePolicy
from dpr_core.models.policy import Policy, autocast
from dpr_core.models.sharding import eval_mode

OnProgress = Callable[[int, int], None]


def score(
    policy: Policy,
    sequences: Sequence[TokenSequence],
    tokens_per_micro_batch: int | None,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    on_progress: OnProgress | None = None,
) -> TokenScores:
    """(B, T) log-probs, soft values and entropies at a temperature; 0 outside the responses. Dropout is off.

    Micro-batches depend on lengths and budget alone, so two models score the same sequences in the same shapes,
    whatever the number of processes that share the work.
    """
    with eval_mode(policy):
        columns = score_columns(
            policy,
            lambda batch: policy(batch, entropy=entropy, temperature=temperature),
            3,
            sequences,
            tokens_per_micro_batch,
            on_progress,
        )
    return TokenScores(*columns)


def score_at(
    policy: Policy,
    temperatures: Sequence[float],
    sequences: Sequence[TokenSequence],
    tokens_per_micro_batch: int | None,
    on_progress: OnProgress | None = None,
) -> list[TokenScores]:
    """As `score` at each temperature, from one pass through the network below its head."""

    def scores(batch: Batch) -> list[Tensor]:
        states = policy.response_states(batch)
        return [column for t in temperatures for column in policy.read(states, batch, temperature=t)]

    with eval_mode(policy):
        columns = score_columns(policy, scores, 3 * len(temperatures), sequences, tokens_per_micro_batch, on_progress)
    return grouped(columns)


def score_with_kl(
    policy: Policy | ContrastivePolicy,
    frozen: Sequence[Policy],
    sequences: Sequence[TokenSequence],
    tokens_per_micro_batch: int | None,
    entropy_at: float | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[list[TokenScores], Tensor, Tensor]:
    """As `score` under each frozen model, and (B, T) the exact KL(policy || the first of them) in the state in front of
    each response token, with the policy's entropy there at a temperature, if one is given; 0 outside. Each network is
    passed through once, whatever its part in this."""
    base, *others = frozen
    parts = (policy.sft, policy.reference) if isinstance(policy, ContrastivePolicy) else (policy,)
    networks = dict.fromkeys((*frozen, *parts))

    def scores(batch: Batch) -> list[Tensor]:
        states = {network: network.response_states(batch) for network in networks}
        ours: States | Contrast = (
            states[policy]
            if isinstance(policy, Policy)
            else Contrast(states[policy.sft], states[policy.reference], policy.k)
        )
        with autocast(base.activations, base.device), tf32_head(base.tf32_head):
            of_base, kl, entropies = scores_and_kl(
                ours, states[base], batch.targets, entropy_at=entropy_at, logits_per_chunk=base.logits_per_chunk
            )
        return [kl, entropies, *of_base, *(column for other in others for column in other.read(states[other], batch))]

    with eval_mode(*networks):
        kl, entropies, *columns = score_columns(
            base, scores, 2 + 3 * len(frozen), sequences, tokens_per_micro_batch, on_progress
        )
    return grouped(columns), kl, entropies


def grouped(columns: Sequence[Tensor] | Tensor) -> list[TokenScores]:
    return [TokenScores(*columns[i : i + 3]) for i in range(0, len(columns), 3)]


def log_probs(
    policy: Policy | ContrastivePolicy,
    sequences: Sequence[TokenSequence],
    tokens_per_micro_batch: int | None,
    on_progress: OnProgress | None = None,
) -> Tensor:
    """(B, T) log-probs of the response tokens under a policy at temperature 1; 0 outside the responses."""
    if isinstance(policy, Policy):
        return score(policy, sequences, tokens_per_micro_batch, on_progress=on_progress).log_probs
    sft, reference, k = policy.sft, policy.reference, policy.k

    def scores(batch: Batch) -> list[Tensor]:
        states = Contrast(sft.response_states(batch), reference.response_states(batch), k)
        with autocast(sft.activations, sft.device), tf32_head(sft.tf32_head):
            return [log_probs_of(states, batch.targets, logits_per_chunk=sft.logits_per_chunk)]

    with eval_mode(sft, reference):
        return score_columns(sft, scores, 1, sequences, tokens_per_micro_batch, on_progress)[0]


def score_values(critic: Critic, sequences: Sequence[TokenSequence], tokens_per_micro_batch: int | None) -> Tensor:
    """(B, T): the critic's value of the state in front of each response token; 0 outside the responses."""
    with eval_mode(critic):
        return score_columns(critic, lambda batch: (critic(batch),), 1, sequences, tokens_per_micro_batch)[0]


def score_columns(
    network: Policy | Critic,
    compute: Callable[[Batch], Sequence[Tensor]],
    columns: int,
    sequences: Sequence[TokenSequence],
    tokens_per_micro_batch: int | None,
    on_progress: OnProgress | None = None,
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
