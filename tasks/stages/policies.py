"""The policies that answer: one that a stage trained, or one made of a reward's two models without training."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from dpr_core.config.evaluation import (
    AnswerConfig,
    AsTrainedConfig,
    BestOfNConfig,
    ContrastiveConfig,
    ExtrapolatedConfig,
)
from dpr_core.errors import UsageError
from tasks.artifacts.store import Artifact
from tasks.stages.lineage import Lineage

if TYPE_CHECKING:
    from torch import Tensor

    from dpr_core.data.encoding import TokenSequence
    from dpr_core.models.dense_reward import DenseReward, ScoredTokens
    from dpr_core.models.extrapolation import ContrastivePolicy
    from dpr_core.models.policy import Policy
    from dpr_core.recorder import Recorder
    from dpr_core.rollouts.engine import Completion, OnProgress, Sampling

HAVE_A_REWARD = ("reward", "reinforce")
"""The stages whose policies were made with a reward."""


@dataclass(frozen=True)
class Answering:
    """A policy with what it is measured against: SFT, and the reward where there is one."""

    settings: AnswerConfig
    policy: "Policy | ContrastivePolicy"
    sft: "Policy"
    reward: "DenseReward | None"

    def draw(
        self,
        prompts: Sequence[tuple[int, ...]],
        sampling: "Sampling",
        seed: int,
        on_progress: "OnProgress",
        drawn: "dict[int, Completion]",
    ) -> "list[Completion]":
        """One answer to each prompt; of best-of-n, `drawn` holds all n."""
        from dpr_core.models.extrapolation import ContrastivePolicy
        from dpr_core.rollouts.in_process import ContrastiveReference, InProcessEngine

        execution = self.settings.execution
        if isinstance(self.policy, ContrastivePolicy):
            contrast = ContrastiveReference(self.policy.reference.model, self.policy.k)
            engine = InProcessEngine.of(self.policy.sft, execution, contrast)
        else:
            engine = InProcessEngine.of(self.policy, execution)
        chosen = self.settings.policy
        if not isinstance(chosen, BestOfNConfig):
            return engine.generate(prompts, sampling, seed, on_progress, drawn)
        repeated = [prompt for prompt in prompts for _ in range(chosen.n)]
        return self._best(engine.generate(repeated, sampling, seed, on_progress, drawn), chosen)

    def _best(self, completions: "list[Completion]", chosen: BestOfNConfig) -> "list[Completion]":
        from dpr_core.data.encoding import TokenSequence
        from dpr_core.rollouts.best_of_n import best_of_each, mean_log_probs, sequence_returns

        assert self.reward is not None
        scored = self.reward([TokenSequence(c.prompt, c.response) for c in completions])
        by_reward = chosen.by == "reward"
        scores = (
            sequence_returns(scored.rewards, scored.mask) if by_reward else mean_log_probs(scored.log_sft, scored.mask)
        )
        return [completions[i] for i in best_of_each(scores, chosen.n)]

    def measure(self, sequences: "Sequence[TokenSequence]") -> "tuple[ScoredTokens | None, Tensor | None]":
        """The reward, where there is one, and (B, T) the exact KL to SFT in the state in front of each token. A choice
        among samples is no policy that has a KL."""
        import torch

        from dpr_core.models.scoring import score_with_kl

        if self.policy is not self.sft:
            if self.reward is not None:
                return self.reward.with_kl(sequences, self.policy)
            budget = self.settings.execution.tokens_per_micro_batch
            return None, score_with_kl(self.policy, [self.sft], sequences, budget)[1]
        nothing = torch.zeros(len(sequences), max(len(s.response) for s in sequences))
        has_kl = not isinstance(self.settings.policy, BestOfNConfig)
        return self.reward(sequences) if self.reward else None, nothing if has_kl else None


def answering(settings: AnswerConfig, lineage: Lineage, source: Artifact) -> Answering:
    """The policy that the settings make of an artifact."""
    from dpr_core.models.checkpoints import extrapolate
    from dpr_core.models.extrapolation import ContrastivePolicy
    from dpr_core.models.sharding import to_device_or_shard

    control, execution = settings.policy, settings.execution
    if not isinstance(control, AsTrainedConfig) and source.stage != "reward":
        raise UsageError(
            f"a policy of type {control.type} is made of a reward, but {source.id[:8]} is of stage {source.stage}"
        )
    reward = lineage.dense_reward(source, execution) if source.stage in HAVE_A_REWARD else None
    load = partial(lineage.load, like=source, execution=execution)
    sft = reward.sft if reward else load(lineage.sft_folder(source), frozen=True)
    policy: Policy | ContrastivePolicy = sft
    if reward and isinstance(control, ContrastiveConfig):
        policy = ContrastivePolicy(sft, reward.reference, control.k)
    elif reward and isinstance(control, ExtrapolatedConfig):
        policy = load(lineage.sft_folder(source))
        reference = load(lineage.reference_folders(source, lineage.definition(source)))
        extrapolate(policy.model, reference.model, control.k)
        to_device_or_shard(policy.freeze(), execution.launch)
    elif source.stage not in ("sft", "reward"):
        policy = load(lineage.policy_folder(source), frozen=True)
    return Answering(settings, policy, sft, reward)


def log_probs(
    settings: AnswerConfig,
    lineage: Lineage,
    source: Artifact,
    sequences: "Sequence[TokenSequence]",
    recorder: "Recorder",
) -> "Tensor":
    """(B, T) log-probs of given responses under the policy that the settings make of an artifact."""
    from dpr_core.models import scoring

    if isinstance(settings.policy, BestOfNConfig):
        raise UsageError("the best of n answers is chosen, not drawn: no likelihood is known of it; leave it out")
    policy = answering(settings, lineage, source).policy
    return scoring.log_probs(policy, sequences, settings.execution.tokens_per_micro_batch, recorder.advance)
