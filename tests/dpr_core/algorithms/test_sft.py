import math

import pytest
import torch

from dpr_core.algorithms.base import LossInputs
from dpr_core.algorithms.sft import SupervisedFineTuning
from dpr_core.logprobs import TokenScores


def test_the_loss_is_the_negative_log_prob_of_every_response_token() -> None:
    scores = TokenScores(torch.tensor([-1.0, -2.5]), torch.zeros(2), torch.zeros(2))
    assert SupervisedFineTuning()(scores, LossInputs())["loss"].tolist() == [1.0, 2.5]
    assert SupervisedFineTuning("dft")(scores, LossInputs())["loss"].tolist() == pytest.approx(
        [math.exp(-1), 2.5 * math.exp(-2.5)]
    )
    assert SupervisedFineTuning.loss_reduction == "token"
