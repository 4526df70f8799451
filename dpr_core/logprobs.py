"""Log-probabilities, entropy and soft value of chosen tokens, from hidden states, without ever holding all logits.

For a state s with logits z = W h (+ b), all in float32 or wider:
    V(s)            = logsumexp(z)                 soft value, with Q(s, .) = z
    log pi(a | s)   = z_a - V(s)
    H(pi(. | s))    = V(s) - sum_a pi(a | s) z_a   entropy

At a temperature T, z / T stands in place of z.

Under autocast, where the states are rounded to bfloat16 on their way anyhow, a GPU may be allowed to round what it
multiplies here to TensorFloat-32. What it adds up, and all else, stays float32.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dpr_core.chunks import rows_of_logits

LOG_RATIO_BOUND = 20.0
"""Of what is exponentiated, as in OpenRLHF: beyond 88 a float32 overflows, and infinity times a slope of 0 is NaN."""

_TF32_HEAD = ContextVar("tf32_head", default=False)


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
    temperature: float = 1.0,
    logits_per_chunk: int = 2**25,
) -> TokenScores:
    """hidden (N, D), head (V, D), targets (N,) -> scores (N,). Differentiable in log_probs and values.

    At most `logits_per_chunk` logits exist at a time. Where all fit, the backward pass takes those of the forward pass;
    else it computes each chunk again.
    """
    device = hidden.device.type
    rows = rows_of_logits(head.shape[0], logits_per_chunk, device == "cpu" and not torch.is_grad_enabled())
    rounded = _may_round(device)
    with torch.autocast(device, enabled=False):
        if temperature != 1:
            hidden, bias = _wide(hidden) / temperature, None if bias is None else _wide(bias) / temperature
        return TokenScores(*_Scores.apply(hidden, head, bias, targets, entropy, rows, rounded))  # type: ignore[no-untyped-call]


class _Scores(torch.autograd.Function):
    """With p = softmax(z):  d log pi(a | s) / dz = onehot(a) - p  and  dV / dz = p."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        entropy: bool,
        rows: int,
        rounded: bool,
    ) -> tuple[Tensor, ...]:
        wide = _wide(head)
        parts = []
        weights: Tensor | None = None
        for start in range(0, max(1, len(hidden)), rows):
            chunk = slice(start, start + rows)
            weights = None  # makes room for those of this chunk, whose logits no name may hold
            *scores, weights = _folded(_product(hidden[chunk], wide, bias, rounded), targets[chunk], entropy)
            parts.append(scores)
        log_probs, values, entropies, totals = (torch.cat(column) for column in zip(*parts, strict=True))
        ctx.rows, ctx.rounded = rows, rounded
        ctx.weights = weights if len(parts) == 1 and any(ctx.needs_input_grad) else None
        ctx.save_for_backward(hidden, head, bias, targets, values, totals)
        ctx.mark_non_differentiable(entropies)
        return log_probs, values, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, head, bias, targets, values, totals = ctx.saved_tensors
        by_log_prob, by_value, _ = gradients

        def slopes_of(chunk: slice) -> Tensor:
            scale = by_value[chunk] - by_log_prob[chunk]
            if ctx.weights is None:
                slopes = _product(hidden[chunk], _wide(head), bias, ctx.rounded).sub_(values[chunk, None]).exp_()
            else:
                # They are overwritten, so a second backward pass over this graph has to compute them again.
                slopes, ctx.weights = ctx.weights, None
                scale = scale / totals
            return slopes.mul_(scale[:, None]).scatter_add_(1, targets[chunk, None], by_log_prob[chunk, None])

        return *_through_head(ctx, (hidden, head, bias), slopes_of), *[None] * 4


def _through_head(
    ctx: Any, states: "States", slopes_of: Callable[[slice], Tensor]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients by hidden states, head and bias, from those by the logits (n, V), chunk by chunk."""
    hidden, head, bias = states
    by_hidden, by_head, by_bias = ctx.needs_input_grad[:3]
    wide = _wide(head)
    hidden_gradient = torch.empty_like(hidden) if by_hidden else None
    head_gradient = torch.zeros_like(wide) if by_head else None
    bias_gradient = torch.zeros_like(_wide(bias)) if bias is not None and by_bias else None
    for start in range(0, len(hidden), ctx.rows):
        chunk = slice(start, start + ctx.rows)
        slopes = slopes_of(chunk)
        with on_tensor_cores(ctx.rounded):
            if hidden_gradient is not None:
                hidden_gradient[chunk] = slopes @ wide
            if head_gradient is not None:
                head_gradient.addmm_(slopes.T, _wide(hidden[chunk]))
        if bias_gradient is not None:
            bias_gradient += slopes.sum(dim=0)
        del slopes  # makes room for those of the next chunk
    return (
        hidden_gradient,
        None if head_gradient is None else head_gradient.to(head.dtype),
        None if bias is None or bias_gradient is None else bias_gradient.to(bias.dtype),
    )


def _folded(logits: Tensor, targets: Tensor, entropy: bool) -> tuple[Tensor, ...]:
    """(N, V) -> log-probs, values, entropies, sums of weights (N,), and the weights exp(z - max z) in place of z."""
    highest = logits.amax(dim=-1, keepdim=True)
    chosen = logits.gather(-1, targets[:, None])
    below = logits.sub_(highest)
    weights = below.exp() if entropy else below.exp_()
    totals = weights.sum(dim=-1)
    spread = totals.log()
    values = highest[:, 0] + spread
    entropies = spread - torch.einsum("nv,nv->n", weights, below) / totals if entropy else torch.zeros_like(values)
    return chosen[:, 0] - values, values, entropies, totals, weights


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


def bounded(log_ratios: Tensor) -> Tensor:
    """Log-ratios whose exponentials are finite, with a gradient of 0 beyond the bound. Far below, exp is 0 as it is."""
    return log_ratios.clamp(max=LOG_RATIO_BOUND)


def scores_and_kl(
    p: States | Contrast,
    q: States,
    targets: Tensor,
    *,
    entropy_at: float | None = None,
    logits_per_chunk: int = 2**25,
) -> tuple[TokenScores, Tensor, Tensor]:
    """The scores (N,) of targets under q, and the exact KL(p || q) = E_p[z_p - z_q] - V_p + V_q over the vocabulary in
    each of N states; no gradient. The logits of q serve both. With those of both models less their maximum, and terms
    that are summed in pairs, little is lost to cancellation. Also the entropies of p at a temperature, 0 where none is
    asked for."""
    hidden, head, _ = q
    rows = rows_of_logits(head.shape[0], logits_per_chunk, hidden.device.type == "cpu")
    parts = []
    with torch.no_grad():
        for start in range(0, max(1, len(hidden)), rows):
            chunk = slice(start, start + rows)
            ours, theirs = _logits(p, chunk), _logits(q, chunk)
            ours -= ours.amax(dim=-1, keepdim=True)
            own = torch.zeros(len(ours), device=ours.device)
            if entropy_at is not None:
                own = _folded(ours / entropy_at, targets[chunk], entropy=True)[2]
            highest = theirs.amax(dim=-1)
            gaps = ours - theirs.sub(highest[:, None])
            log_probs, values, entropies, totals, _ = _folded(theirs, targets[chunk], entropy=False)
            weights = ours.exp_()
            ours_total = weights.sum(dim=-1)
            mean_gap = weights.mul_(gaps).sum(dim=-1) / ours_total
            parts.append((log_probs, values, entropies, mean_gap - ours_total.log() + totals.log(), own))
    *columns, kl, entropies_of_p = (torch.cat(column) for column in zip(*parts, strict=True))
    return TokenScores(*columns), kl, entropies_of_p


OverVocabulary = Callable[[slice], Tensor]
"""Numbers (n, V) of a chunk of n states for every token of the vocabulary: logits or rewards. They are fresh at each
call, and may be overwritten."""


def scores_and_expected_reward(
    policy: OverVocabulary,
    sft: OverVocabulary,
    reference: OverVocabulary,
    reward: Callable[[Tensor, Tensor], Tensor],
    targets: Tensor,
    rows: int,
) -> tuple[list[TokenScores], Tensor]:
    """The scores (N,) of targets under three models, from their logits, and (N,) the expected reward of a state,
    sum_a pi(a | s) r(s, a). `reward` makes r of both frozen models' log-probs (n, V). No gradient."""
    parts = []
    with torch.no_grad():
        for start in range(0, max(1, len(targets)), rows):
            chunk = slice(start, start + rows)
            log_sft, of_sft = _log_policy(sft(chunk), targets[chunk])
            log_ref, of_ref = _log_policy(reference(chunk), targets[chunk])
            rewards = reward(log_sft, log_ref)
            *ours, totals, weights = _folded(policy(chunk), targets[chunk], entropy=True)
            parts.append((*ours, *of_sft, *of_ref, weights.mul_(rewards).sum(dim=-1) / totals))
    *columns, expected = (torch.cat(column) for column in zip(*parts, strict=True))
    return [TokenScores(*columns[i : i + 3]) for i in range(0, len(columns), 3)], expected


def _log_policy(logits: Tensor, targets: Tensor) -> tuple[Tensor, TokenScores]:
    """Log-probs (n, V) in place of logits, and the scores of the targets."""
    values = logits.logsumexp(dim=-1)
    log_policy = logits.sub_(values[:, None])
    return log_policy, TokenScores(log_policy.gather(-1, targets[:, None])[:, 0], values, torch.zeros_like(values))


def expectation(states: States, wanted: OverVocabulary, entropy_weight: float, temperature: float, rows: int) -> Tensor:
    """(N,): J(s) = sum_a pi(a | s) w(s, a) + beta H(pi(. | s)), differentiable in the states and their head.

    With w = r + beta log pi_SFT it is the expected reward less beta KL(pi || pi_SFT). `wanted` gives w of a chunk; the
    backward pass asks for it again, unless all fits into one chunk.
    """
    hidden, head, bias = states
    device = hidden.device.type
    rounded = _may_round(device)
    with torch.autocast(device, enabled=False):
        if temperature != 1:
            hidden, bias = _wide(hidden) / temperature, None if bias is None else _wide(bias) / temperature
        result: Tensor = _Expectation.apply(hidden, head, bias, wanted, entropy_weight, rows, rounded)  # type: ignore[no-untyped-call]
    return result


class _Expectation(torch.autograd.Function):
    """With p = softmax(z):  dJ / dz_a = p_a (w_a - beta log p_a - J)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        bias: Tensor | None,
        wanted: OverVocabulary,
        entropy_weight: float,
        rows: int,
        rounded: bool,
    ) -> Tensor:
        ctx.rows, ctx.rounded, ctx.wanted, ctx.entropy_weight = rows, rounded, wanted, entropy_weight
        ctx.save_for_backward(hidden, head, bias)
        parts = []
        for start in range(0, max(1, len(hidden)), rows):
            slopes = None  # makes room for those of this chunk
            value, slopes = _expected(ctx, (hidden, head, bias), slice(start, start + rows))
            parts.append(value)
        ctx.slopes = slopes if len(parts) == 1 and any(ctx.needs_input_grad) else None
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        states = ctx.saved_tensors

        def slopes_of(chunk: slice) -> Tensor:
            slopes, ctx.slopes = ctx.slopes, None
            if slopes is None:
                _, slopes = _expected(ctx, states, chunk)
            scaled: Tensor = slopes.mul_(gradient[chunk, None])
            return scaled

        return *_through_head(ctx, states, slopes_of), *[None] * 4


def _expected(ctx: Any, states: States, chunk: slice) -> tuple[Tensor, Tensor]:
    """J (n,) and its gradient by the logits (n, V)."""
    hidden, head, bias = states
    with torch.no_grad():
        gains = ctx.wanted(chunk)
        log_policy = torch.log_softmax(_product(hidden[chunk], _wide(head), bias, ctx.rounded), dim=-1)
        gains = gains.to(log_policy.dtype).sub_(log_policy, alpha=ctx.entropy_weight)
        policy = log_policy.exp_()
        value = torch.einsum("nv,nv->n", policy, gains)
        return value, gains.sub_(value[:, None]).mul_(policy)


def _logits(states: States | Contrast, chunk: slice) -> Tensor:
    if isinstance(states, Contrast):
        return contrastive(_logits(states.sft, chunk), _logits(states.reference, chunk), states.k)
    hidden, head, bias = states
    return float32_logits(hidden[chunk], head, bias)


def log_probs_of(states: States | Contrast, targets: Tensor, *, logits_per_chunk: int = 2**25) -> Tensor:
    """(N,): log pi(a | s) of targets under one model or the policy of two; no gradient."""
    hidden, head, _ = states.sft if isinstance(states, Contrast) else states
    rows = rows_of_logits(head.shape[0], logits_per_chunk, hidden.device.type == "cpu")
    chunks = [slice(start, start + rows) for start in range(0, max(1, len(hidden)), rows)]
    with torch.no_grad():
        return torch.cat([_folded(_logits(states, chunk), targets[chunk], entropy=False)[0] for chunk in chunks])


def float32_logits(hidden: Tensor, head: Tensor, bias: Tensor | None) -> Tensor:
    """In float32 even under autocast: bf16 logits near 16 are 0.125 apart, as far as the reward is large."""
    device = hidden.device.type
    rounded = _may_round(device)
    with torch.autocast(device, enabled=False):
        return _product(hidden, _wide(head), bias, rounded)


def _product(hidden: Tensor, wide: Tensor, bias: Tensor | None, rounded: bool) -> Tensor:
    with on_tensor_cores(rounded):
        return functional.linear(_wide(hidden), wide, None if bias is None else _wide(bias))


@contextmanager
def tf32_head(allowed: bool) -> Iterator[None]:
    """Whether what is scored meanwhile, under autocast, may be multiplied in TensorFloat-32."""
    token = _TF32_HEAD.set(allowed)
    try:
        yield
    finally:
        _TF32_HEAD.reset(token)


def _may_round(device: str) -> bool:
    return _TF32_HEAD.get() and torch.is_autocast_enabled(device)


@contextmanager
def on_tensor_cores(rounded: bool) -> Iterator[None]:
    """For the products that are made meanwhile alone: what others multiply in float32 stays exact."""
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    if rounded:
        settings.fp32_precision = "tf32"
    try:
        yield
    finally:
        settings.fp32_precision = before


def _wide(values: Tensor) -> Tensor:
    """In float32; what is in float64 stays."""
    return values if values.dtype == torch.float64 else values.float()
