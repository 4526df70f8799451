"""SR: REINFORCE on the sentence-level reward. Every token is credited with the whole response."""

from dpr_core.algorithms.base import Credit, Experience
from dpr_core.algorithms.dense_path_reinforce import ReinforcePlusPlus
from dpr_core.returns import terminal_reward


class SequenceReinforce(ReinforcePlusPlus):
    """As REINFORCE++, with the dense reward summed up and paid at the last token; the KL term stays with each token."""

    def credit(self, seen: Experience, kl_weight: float) -> Credit:
        return super().credit(seen._replace(rewards=terminal_reward(seen.rewards, seen.mask)), kl_weight)
