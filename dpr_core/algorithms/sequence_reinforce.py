"""SR: REINFORCE on the sentence-level reward, every token credited with the return of the whole response."""

from dpr_core.algorithms.base import Advantages, RolloutBatch
from dpr_core.algorithms.dense_path_reinforce import ReinforcePlusPlus
from dpr_core.returns import terminal_reward


class SequenceReinforce(ReinforcePlusPlus):
    """As REINFORCE++, with the dense reward summed up and paid at the last token; the KL term stays with each token."""

    def credit(self, batch: RolloutBatch, kl_weight: float) -> Advantages:
        return super().credit(batch._replace(rewards=terminal_reward(batch.rewards, batch.mask)), kl_weight)
