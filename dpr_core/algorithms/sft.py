"""Supervised fine-tuning: L = -mean of log pi(a | s) over the response tokens, the end token included."""

from typing import Literal

from torch import Tensor

from dpr_core import losses
from dpr_core.algorithms.base import LossInputs
from dpr_core.logprobs import TokenScores


class SupervisedFineTuning:
    loss_reduction: Literal["token", "sequence"] = "token"

    def __call__(self, scores: TokenScores, inputs: LossInputs) -> dict[str, Tensor]:
        return {"loss": losses.nll(scores.log_probs)}
