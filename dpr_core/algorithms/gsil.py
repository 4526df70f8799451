"""GSIL (Xiao et al., 2024): self-imitation as the estimation of a density ratio, of demonstrations to own responses."""

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import logsigmoid

from dpr_core.config import imitation as config
from dpr_core.logprobs import bounded

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bernoulli": lambda demonstration, generated: -logsigmoid(demonstration) - logsigmoid(-generated),
    "brier": lambda demonstration, generated: (demonstration.sigmoid() - 1) ** 2 + generated.sigmoid() ** 2,
    "hinge": lambda demonstration, generated: (1 - demonstration).clamp(min=0) + (1 + generated).clamp(min=0),
    "kliep": lambda demonstration, generated: -demonstration + bounded(generated).exp(),
    "lsif": lambda demonstration, generated: -bounded(demonstration).exp() + (2 * bounded(generated)).exp() / 2,
}
"""Each takes u of the demonstrations and of the generated responses, (B,) -> (B,)."""


class Gsil:
    """One of the losses above of u = scale d + shift, d = log pi(y | x) - log pi_opponent(y | x)."""

    def __init__(self, settings: config.GsilConfig) -> None:
        self.loss = LOSSES[settings.loss]
        self.scale = settings.scale
        self.shift = settings.shift

    def __call__(self, demonstration: Tensor, generated: Tensor) -> Tensor:
        return self.loss(self.scale * demonstration + self.shift, self.scale * generated + self.shift)
