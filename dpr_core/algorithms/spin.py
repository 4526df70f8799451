"""SPIN (Chen et al., 2024): a logistic loss that prefers the demonstration to the opponent's own response."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from dpr_core.config import imitation as config


class Spin:
    """L = -log sigmoid(beta (d_demonstration - d_generated)), d = log pi(y | x) - log pi_opponent(y | x)."""

    def __init__(self, settings: config.SpinConfig) -> None:
        self.beta = settings.beta

    def __call__(self, demonstration: Tensor, generated: Tensor) -> Tensor:
        return -logsigmoid(self.beta * (demonstration - generated))
