"""Losses of single tokens, (N,) -> (N,); the training loop sums them and divides by the global batch's count."""

import torch
from torch import Tensor

from dpr_core.logprobs import bounded


def nll(log_probs: Tensor) -> Tensor:
    """-log pi(a | s): supervised fine-tuning."""
    return -log_probs


def dft(log_probs: Tensor) -> Tensor:
    """-sg(pi(a | s)) log pi(a | s): dynamic fine-tuning (2508.05629). No gradient goes through the weight, so its slope
    is that of -pi(a | s): what the policy finds hopeless hardly counts."""
    return log_probs.detach().exp() * nll(log_probs)


def reinforce(log_probs: Tensor, returns: Tensor) -> Tensor:
    """-log pi(a | s) G (line 9 of Algorithm 1)."""
    return -log_probs * returns


def clipped(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """PPO's pessimistic surrogate: -min(ratio A, clamp(ratio, 1 - clip, 1 + clip) A), ratio = pi / pi_old."""
    ratio = bounded(log_probs - old_log_probs).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def clip_binds(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Where `clipped` has no gradient: the ratio is beyond the clip on the side to which the advantage pulls it."""
    ratio = bounded(log_probs.detach() - old_log_probs).exp()
    return torch.where(advantages > 0, ratio > 1 + clip, (ratio < 1 - clip) & (advantages < 0))


def k1_kl(log_probs: Tensor, reference_log_probs: Tensor, bound: float) -> Tensor:
    """The one-sample estimate log pi - log pi_SFT of the KL to SFT, clamped to plus or minus `bound`."""
    return (log_probs - reference_log_probs).clamp(-bound, bound)


def squared_error(values: Tensor, returns: Tensor) -> Tensor:
    """The critic's error: (V - G)^2 / 2."""
    return 0.5 * (values - returns).square()


def clipped_value(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """The critic's pessimistic error: max((V - G)^2, (clamp(V, V_old - clip, V_old + clip) - G)^2) / 2."""
    held = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum(squared_error(values, returns), squared_error(held, returns))
