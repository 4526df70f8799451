"""Losses of response pairs, for self-play, as a surrogate loss that is a sum over tokens.

The two responses of a pair may be in different micro-batches. With `slope` the derivative of the pair's loss by a
response's summed log-prob, slope x log pi of each of its tokens has the loss's gradient wherever the token is.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from dpr_core.algorithms.base import LossInputs, required
from dpr_core.logprobs import TokenScores

PairLoss = Callable[[Tensor, Tensor], Tensor]
"""Losses (B,) of pairs, from the log-ratios log pi - log pi_opponent of demonstrations and of own responses, (B,)."""


class PairLossSurrogate:
    """It has the value and, through log pi, the gradient of the pairs' loss."""

    loss_reduction: Literal["token", "sequence"] = "sequence"

    def __call__(self, scores: TokenScores, inputs: LossInputs) -> dict[str, Tensor]:
        slope, loss = required(inputs.slope), required(inputs.loss)
        return {"loss": loss + slope * (scores.log_probs - scores.log_probs.detach())}


def surrogate_inputs(losses: Tensor, slopes: Tensor, width: int) -> LossInputs:
    """Of B pairs, whose batch is B demonstrations and then B generated responses: (2B, width) each."""
    # The trainer divides by the number of sequences, and a pair has two.
    slope = 2 * slopes.reshape(-1, 1).expand(-1, width)
    loss = torch.zeros(slope.shape)
    loss[: len(losses), 0] = 2 * losses.float()
    return LossInputs(slope=slope.float(), loss=loss)


def losses_and_slopes(method: PairLoss, log_ratios: Tensor) -> tuple[Tensor, Tensor]:
    """The losses (B,) at the log-ratios (2, B), and their derivatives (2, B) by these."""
    at = log_ratios.detach().requires_grad_()
    losses = method(at[0], at[1])
    (slopes,) = torch.autograd.grad(losses.sum(), at)
    return losses.detach(), slopes
