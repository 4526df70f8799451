"""PPO with generalised advantage estimation (GAE): the sentence-level reward of SR, and a learned value function."""

from typing import Literal

from torch import Tensor

from dpr_core import losses
from dpr_core.advantages import gae
from dpr_core.algorithms.base import Advantages, LossInputs, RolloutBatch, required
from dpr_core.algorithms.dense_path_reinforce import ReinforcePlusPlus
from dpr_core.config import reinforce as config
from dpr_core.returns import terminal_reward


class ValueRegression:
    """Regression of the value function on the returns; where asked for, new values are clipped near the old ones."""

    loss_reduction: Literal["token", "sequence"] = "token"

    def __init__(self, settings: config.PPOConfig) -> None:
        self.learning_rate = settings.critic_learning_rate
        self.warmup_iterations = settings.critic_warmup_iterations
        self.clip = settings.value_clip

    def __call__(self, scores: Tensor, inputs: LossInputs) -> dict[str, Tensor]:
        returns = required(inputs.returns)
        if self.clip is None:
            return {"loss": losses.squared_error(scores, returns)}
        return {"loss": losses.clipped_value(scores, required(inputs.old_values), returns, self.clip)}


class PPO(ReinforcePlusPlus):
    """GAE in place of the return; the ratio clip and the KL term are REINFORCE++'s."""

    def __init__(self, settings: config.PPOConfig) -> None:
        super().__init__(settings)
        self.gae_lambda = settings.gae_lambda
        self.critic = ValueRegression(settings)

    def credit(self, batch: RolloutBatch, kl_weight: float) -> Advantages:
        terminal = batch._replace(rewards=terminal_reward(batch.rewards, batch.mask))
        rewards = self.penalised(terminal, kl_weight)
        advantages = gae(rewards, batch.values, batch.mask, self.settings.gamma, self.gae_lambda)
        return Advantages(advantages + batch.values, self.normalised(advantages, batch))
