"""What a policy-gradient method is to the loop: rewards become credit, and credit becomes a loss."""

from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from dpr_core.algorithms.kl_control import KLControl
from dpr_core.logprobs import TokenScores
from dpr_core.training.trainer import Objective


class Experience(NamedTuple):
    """(B, T): a rollout batch as a method sees it, before the update."""

    rewards: Tensor
    log_old: Tensor
    log_sft: Tensor
    mask: Tensor
    values: Tensor
    """The critic's; 0 without one."""


class Credit(NamedTuple):
    """(B, T): what each token is credited with. A critic learns the returns."""

    returns: Tensor
    advantages: Tensor


class CriticObjective(Objective, Protocol):
    """The loss of a critic, (N,) values in, and how the critic is trained."""

    learning_rate: float
    warmup_iterations: int
    """Iterations in which the policy waits for the critic."""


class PolicyGradient(Protocol):
    per: Literal["token", "sequence"]

    @property
    def critic(self) -> CriticObjective | None:
        """None where the method needs no critic."""

    def kl_control(self, iterations: int) -> KLControl:
        """Where the KL weights of a run of so many iterations come from."""

    def credit(self, seen: Experience, kl_weight: float) -> Credit: ...

    def __call__(self, scores: TokenScores, **values: Tensor) -> dict[str, Tensor]: ...
