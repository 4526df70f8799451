"""SR: REINFORCE on the sentence-level reward. Every token is credited with the whole response."""

from torch import Tensor

from dpr_core.algorithms.dense_path_reinforce import Credit, ReinforcePlusPlus
from dpr_core.returns import paid_at_the_end


class SequenceReinforce(ReinforcePlusPlus):
    """As REINFORCE++, with the dense reward summed up and paid at the last token; the KL term stays with each token."""

    def credit(self, rewards: Tensor, log_old: Tensor, log_sft: Tensor, mask: Tensor) -> Credit:
        return super().credit(paid_at_the_end(rewards, mask), log_old, log_sft, mask)
