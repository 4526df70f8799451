"""Log-probabilities, entropy and soft value of chosen tokens, from hidden states, without ever holding all logits.

For a state s with logits z = W h (+ b), all in float32:
    V(s)            = logsumexp(z)                 soft value, with Q(s, .) = z
    log pi(a | s)   = z_a - V(s)
    H(pi(. | s))    = V(s) - sum_a pi(a | s) z_a   entropy
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class TokenScores(NamedTuple):
    """One number for each of N tokens; float32. Entropies carry no gradient, and are 0 where not asked for."""

    log_probs: Tensor
    values: Tensor
    entropies: Tensor


def token_scores(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    entropy: bool = False,
    logits_per_chunk: int = 2**24,
) -> TokenScores:
    """hidden (N, D), head (V, D), targets (N,) -> scores (N,). Differentiable in log_probs and values.

    At most `logits_per_chunk` logits exist at a time, also in the backward pass, which computes each chunk again.
    """
    rows = max(1, logits_per_chunk // head.shape[0])
    one_chunk = len(hidden) <= rows
    parts = []
    for start in range(0, len(hidden), rows):
        arguments = (hidden[start : start + rows], head, targets[start : start + rows], bias, entropy)
        if torch.is_grad_enabled() and not one_chunk:
            parts.append(checkpoint(_chunk, *arguments, use_reentrant=False))
        else:
            parts.append(_chunk(*arguments))
    if not parts:
        parts = [_chunk(hidden, head, targets, bias, entropy)]
    return TokenScores(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _chunk(
    hidden: Tensor, head: Tensor, targets: Tensor, bias: Tensor | None, entropy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    logits = float32_logits(hidden, head, bias)
    values = torch.logsumexp(logits, dim=-1)
    log_probs = logits.gather(-1, targets[:, None])[:, 0] - values
    entropies = torch.zeros_like(values)
    if entropy:
        with torch.no_grad():
            entropies = values - torch.einsum("nv,nv->n", torch.softmax(logits, dim=-1), logits)
    return log_probs, values, entropies


States = tuple[Tensor, Tensor, Tensor | None]
"""Hidden states (N, D) with the weight (V, D) and the bias (V,) of the head that reads them."""


class Contrast(NamedTuple):
    """The same N states of two models, which together are one policy: see `contrastive`."""

    sft: States
    reference: States
    k: float


def contrastive(log_sft: Tensor, log_ref: Tensor, k: float) -> Tensor:
    """Logits log pi_SFT + k (log pi_SFT - log pi_ref) over the vocabulary, from two models' logits."""
    log_sft, log_ref = torch.log_softmax(log_sft, dim=-1), torch.log_softmax(log_ref, dim=-1)
    return log_sft + k * (log_sft - log_ref)


def token_kl(p: States | Contrast, q: States, *, logits_per_chunk: int = 2**24) -> Tensor:
    """Exact KL(p || q) over the vocabulary in each of N states; no gradient."""
    hidden, head, _ = q
    rows = max(1, logits_per_chunk // head.shape[0])
    parts = [torch.zeros(0, device=hidden.device)]
    with torch.no_grad():
        for start in range(0, len(hidden), rows):
            chunk = slice(start, start + rows)
            log_p, log_q = (torch.log_softmax(_logits(states, chunk), dim=-1) for states in (p, q))
            parts.append((log_p.exp() * (log_p - log_q)).sum(dim=-1))
    return torch.cat(parts)


def _logits(states: States | Contrast, chunk: slice) -> Tensor:
    if isinstance(states, Contrast):
        return contrastive(_logits(states.sft, chunk), _logits(states.reference, chunk), states.k)
    hidden, head, bias = states
    return float32_logits(hidden[chunk], head, bias)


def float32_logits(hidden: Tensor, head: Tensor, bias: Tensor | None) -> Tensor:
    """In float32 even under autocast: bf16 logits near 16 are 0.125 apart, as far as the reward is large."""
    with torch.autocast(hidden.device.type, enabled=False):
        logits = hidden.float() @ head.float().T
        return logits if bias is None else logits + bias.float()
