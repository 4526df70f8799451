"""Supervised fine-tuning: a loss of log pi(a | s), meaned over the response tokens, the end token included."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from dpr_core import losses
from dpr_core.algorithms.base import LossInputs
from dpr_core.config.training import SFTLoss
from dpr_core.logprobs import TokenScores

LOSSES: dict[SFTLoss, Callable[[Tensor], Tensor]] = {"nll": losses.nll, "dft": losses.dft}


class SupervisedFineTuning:
    loss_reduction: Literal["token", "sequence"] = "token"

    def __init__(self, loss: SFTLoss = "nll") -> None:
        self.loss = LOSSES[loss]

    def __call__(self, scores: TokenScores, inputs: LossInputs) -> dict[str, Tensor]:
        return {"loss": self.loss(scores.log_probs)}
