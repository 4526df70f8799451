"""Dense-Path REINFORCE in its two readings: the paper's Algorithm 1, and the REINFORCE++ that its experiments ran."""

from typing import Literal

from torch import Tensor

from dpr_core import losses
from dpr_core.advantages import centre, position_baseline, whiten
from dpr_core.algorithms import kl_control
from dpr_core.algorithms.base import Advantages, CriticObjective, LossInputs, RolloutBatch, required
from dpr_core.config import reinforce as config
from dpr_core.logprobs import TokenScores
from dpr_core.returns import reward_to_go


class Algorithm1:
    """L = -(1/B) sum_i sum_t log pi(a_t | s_t) G_t."""

    loss_reduction: Literal["token", "sequence"] = "sequence"
    critic: CriticObjective | None = None

    def __init__(self, settings: config.Algorithm1Config) -> None:
        self.gamma = settings.gamma

    def kl_control(self, iterations: int) -> kl_control.KLControl:
        return kl_control.Constant(0.0)

    def credit(self, batch: RolloutBatch, kl_weight: float) -> Advantages:
        returns = reward_to_go(batch.rewards, batch.mask, self.gamma)
        return Advantages(returns, returns)

    def __call__(self, scores: TokenScores, inputs: LossInputs) -> dict[str, Tensor]:
        return {"loss": losses.reinforce(scores.log_probs, required(inputs.advantages))}


class ReinforcePlusPlus:
    """Per-token KL inside the return, one whitening over the rollout batch, clipped ratio, mean over tokens."""

    loss_reduction: Literal["token", "sequence"] = "token"
    critic: CriticObjective | None = None

    def __init__(self, settings: config.ClippedReinforceConfig) -> None:
        self.settings = settings

    def kl_control(self, iterations: int) -> kl_control.KLControl:
        return kl_control.kl_control(self.settings.kl_weight, self.settings.kl_schedule, iterations)

    def credit(self, batch: RolloutBatch, kl_weight: float) -> Advantages:
        returns = reward_to_go(self.penalised(batch, kl_weight), batch.mask, self.settings.gamma)
        return Advantages(returns, self.normalised(returns, batch))

    def penalised(self, batch: RolloutBatch, kl_weight: float) -> Tensor:
        """The rewards less the KL estimate of each token."""
        return batch.rewards - kl_weight * losses.k1_kl(batch.log_old, batch.log_sft, self.settings.kl_bound)

    def normalised(self, advantages: Tensor, batch: RolloutBatch) -> Tensor:
        """Less the baseline, then whitened or centred, as the settings ask for."""
        mask = batch.mask
        if self.settings.baseline == "expected":
            advantages = (advantages - required(batch.expected_rewards)).where(mask, 0)
        if self.settings.baseline == "position":
            advantages = advantages - position_baseline(advantages, mask)
        if self.settings.whiten == "batch_mean":
            return centre(advantages, mask)
        return whiten(advantages, mask) if self.settings.whiten else advantages

    def __call__(self, scores: TokenScores, inputs: LossInputs) -> dict[str, Tensor]:
        old, advantages, clip = required(inputs.old_log_probs), required(inputs.advantages), self.settings.ratio_clip
        return {
            "loss": losses.clipped(scores.log_probs, old, advantages, clip),
            "clip_fraction": losses.clip_binds(scores.log_probs, old, advantages, clip).float(),
        }
