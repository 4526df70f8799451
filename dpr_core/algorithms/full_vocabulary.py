"""Expected policy gradient over the full vocabulary at gamma 0 (all actions of a state, none of them sampled)."""

from typing import Literal

from torch import Tensor

from dpr_core.algorithms import kl_control
from dpr_core.algorithms.base import Advantages, CriticObjective, LossInputs, RolloutBatch
from dpr_core.config import reinforce as config


class FullVocabulary:
    """L = -(1/n) sum over the states that were drawn of E_{a ~ pi}[r(s, a)] - beta KL(pi || pi_SFT).

    The sum over tokens is made where the logits are (`dpr_core.logprobs.expectation`). There is no ratio to clip and
    nothing to whiten; the credit of the tokens that were drawn is for the metrics alone.
    """

    loss_reduction: Literal["token", "sequence"] = "token"
    critic: CriticObjective | None = None

    def __init__(self, settings: config.FullVocabularyConfig) -> None:
        self.settings = settings

    def kl_control(self, iterations: int) -> kl_control.KLControl:
        return kl_control.kl_control(self.settings.kl_weight, self.settings.kl_schedule, iterations)

    def credit(self, batch: RolloutBatch, kl_weight: float) -> Advantages:
        rewards = (batch.rewards - kl_weight * (batch.log_old - batch.log_sft)).where(batch.mask, 0)
        return Advantages(rewards, rewards)

    def __call__(self, scores: Tensor, inputs: LossInputs) -> dict[str, Tensor]:
        return {"loss": -scores}
