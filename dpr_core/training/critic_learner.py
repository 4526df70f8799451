"""The critic of a method that needs one, beside the policy: it values each rollout batch, and learns from it."""

from collections.abc import Sequence

from torch import Tensor

from dpr_core.algorithms.base import CriticObjective
from dpr_core.config.reinforce import ReinforceConfig
from dpr_core.data.encoding import TokenSequence
from dpr_core.models.critic import Critic
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import values
from dpr_core.recorder import Recorder
from dpr_core.training.trainer import Trainer


class CriticLearner:
    """Starts from the policy's body. Everything but the learning rate is set as for the policy."""

    def __init__(
        self,
        objective: CriticObjective,
        policy: Policy,
        config: ReinforceConfig,
        total_steps: int,
        recorder: Recorder | None = None,
    ) -> None:
        self.objective = objective
        self.critic = Critic(policy)
        settings = config.model_copy(update={"learning_rate": objective.learning_rate})
        self.trainer = Trainer(self.critic, settings, total_steps, config.execution, "critic", recorder)

    def values(self, sequences: Sequence[TokenSequence]) -> Tensor:
        """(B, T), before the update."""
        return values(self.critic, sequences, self.trainer.execution.tokens_per_micro_batch)
