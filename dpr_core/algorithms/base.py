"""The contract between an algorithm and training: a rollout batch in, advantages out, and a loss of typed inputs."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from dpr_core.algorithms.kl_control import KLControl


class LossInputs(NamedTuple):
    """What a loss reads of each response token beside the token's score: (B, T) for a batch, (N,) for the tokens of a
    micro-batch. None where no loss of this batch reads it."""

    old_log_probs: Tensor | None = None
    """log pi of the policy that the rollout batch is from."""
    old_values: Tensor | None = None
    """The critic's values before the update."""
    returns: Tensor | None = None
    advantages: Tensor | None = None
    slope: Tensor | None = None
    """The derivative of a pair loss by the token's log-prob."""
    loss: Tensor | None = None
    """A pair loss, at one token of the pair."""

    def map(self, change: Callable[[Tensor], Tensor]) -> "LossInputs":
        """The same change to each tensor."""
        return LossInputs(*(None if values is None else change(values) for values in self))

    def rows(self, rows: Sequence[int], width: int) -> "LossInputs":
        """A mini-batch: some rows, cut to their longest response."""
        return self.map(lambda values: values[rows, :width])


def required(values: Tensor | None) -> Tensor:
    """A field that a loss cannot do without."""
    if values is None:
        raise ValueError("the loss reads a field of its LossInputs that is None")
    return values


class Objective(Protocol):
    """A loss."""

    loss_reduction: Literal["token", "sequence"]
    """The sum over the global batch is divided by its number of response tokens, or of sequences."""

    def __call__(self, scores: Any, inputs: LossInputs) -> dict[str, Tensor]:
        """Losses of single tokens under "loss"; any other entry is a per-token metric.

        `scores` are the output of the module's forward for the response tokens, such as a policy's TokenScores.
        """


class CriticObjective(Objective, Protocol):
    """The loss of a critic, whose forward gives values (N,), and how the critic is trained."""

    learning_rate: float
    warmup_iterations: int
    """Iterations in which only the critic is updated."""


class RolloutBatch(NamedTuple):
    """(B, T): rewards of a rollout batch, and log-probs before the update at the temperature that drew it."""

    rewards: Tensor
    log_old: Tensor
    log_sft: Tensor
    mask: Tensor
    values: Tensor
    """The critic's; 0 without one."""
    expected_rewards: Tensor | None = None
    """E[r(s, a)] over the policy that drew, where a baseline needs it."""


class Advantages(NamedTuple):
    """(B, T): what the policy learns from, and the returns, which a critic learns."""

    returns: Tensor
    advantages: Tensor


class PolicyGradient(Objective, Protocol):
    """A policy-gradient method: how rewards become advantages, and the loss of these."""

    @property
    def critic(self) -> CriticObjective | None:
        """None where the method needs no critic."""

    def kl_control(self, iterations: int) -> KLControl:
        """The schedule of the KL weight over a run of so many iterations."""

    def credit(self, batch: RolloutBatch, kl_weight: float) -> Advantages: ...
