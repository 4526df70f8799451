"""PPO: the sentence-level reward of SR, with advantages over what a learned critic expected."""

from typing import Literal

from torch import Tensor

from dpr_core import losses
from dpr_core.advantages import gae
from dpr_core.algorithms.base import Credit, Experience
from dpr_core.algorithms.dense_path_reinforce import ReinforcePlusPlus
from dpr_core.config import reinforce as config
from dpr_core.returns import terminal_reward


class ValueRegression:
    """The critic learns the returns; its new values are held near the old ones."""

    per: Literal["token", "sequence"] = "token"

    def __init__(self, settings: config.PPOConfig) -> None:
        self.learning_rate = settings.critic_learning_rate
        self.warmup_iterations = settings.critic_warmup_iterations
        self.clip = settings.value_clip

    def __call__(self, scores: Tensor, **values: Tensor) -> dict[str, Tensor]:
        return {"loss": losses.clipped_value(scores, values["old_values"], values["returns"], self.clip)}


class PPO(ReinforcePlusPlus):
    """Generalised advantage estimation in place of the return; the ratio clip and the KL term are REINFORCE++'s."""

    def __init__(self, settings: config.PPOConfig) -> None:
        super().__init__(settings)
        self.gae_lambda = settings.gae_lambda
        self.critic = ValueRegression(settings)

    def credit(self, seen: Experience, kl_weight: float) -> Credit:
        paid = seen._replace(rewards=terminal_reward(seen.rewards, seen.mask))
        rewards = self.penalised(paid, kl_weight)
        advantages = gae(rewards, seen.values, seen.mask, self.settings.gamma, self.gae_lambda)
        return Credit(advantages + seen.values, self.normalised(advantages, seen.mask))
