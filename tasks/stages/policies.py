"""The policies that answer: one that a stage trained or kept, SFT at another temperature, or one made of a reward's two
models without training."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dpr_core.config.evaluation import (
    AnswerConfig,
    AsTrainedConfig,
    BestOfNConfig,
    ContrastiveConfig,
    ExtrapolatedConfig,
    KeptConfig,
    SFTPolicyConfig,
)
from dpr_core.errors import UsageError
from tasks.artifacts.store import Artifact
from tasks.stages.lineage import KEPT, Lineage, kept

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from dpr_core.data.encoding import TokenSequence
    from dpr_core.data.template import Renderer
    from dpr_core.evaluation.questions import Question
    from dpr_core.models.dense_reward import ScoredTokens, TokenReward
    from dpr_core.models.extrapolation import ContrastivePolicy
    from dpr_core.models.policy import Policy
    from dpr_core.recorder import Recorder
    from dpr_core.rollouts.engine import Completion, OnProgress, Sampling
    from dpr_core.rollouts.multi_turn import Conversation, RenderedConversation

logger = logging.getLogger("dense_path")

STAGES_SAID = {"sft": "an SFT run", "reinforce": "a REINFORCE run", "reward": "a reward"}

HAVE_A_REWARD = ("reward", "reinforce")
"""The stages whose policies were made with a reward."""


class Measured(NamedTuple):
    """What is known of answers, each (B, T) in the state in front of each token."""

    scored: "ScoredTokens | None"
    """The reward, where there is one."""
    kl: "Tensor | None"
    """The exact KL to SFT at temperature 1; a choice among samples is no policy that has one."""
    entropies: "Tensor | None"
    """The exact entropies, where a pass that is made anyway gives them."""


@dataclass(frozen=True)
class Answering:
    """A policy with what it is measured against: SFT, and the reward where there is one."""

    settings: AnswerConfig
    policy: "Policy | ContrastivePolicy"
    sft: "Policy"
    reward: "TokenReward | None"

    def ask(
        self, conversations: "Sequence[Conversation | RenderedConversation]", end: int, recorder: "Recorder"
    ) -> "list[list[Completion]]":
        """The answers to every turn of every question."""
        from dpr_core.rollouts.engine import Sampling
        from dpr_core.rollouts.multi_turn import answer_questions

        sampling = Sampling(self.settings.drawn_at, self.settings.max_response_tokens, end)
        draw = partial(self.draw, choosing=partial(recorder.part, "choosing"))
        return answer_questions(conversations, draw, sampling, self.settings.seed, self.sft.positions, recorder)

    def draw(
        self,
        prompts: Sequence[tuple[int, ...]],
        sampling: "Sampling",
        seed: int,
        on_progress: "OnProgress",
        drawn: "dict[int, Completion]",
        choosing: "OnProgress",
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
        return self._best(engine.generate(repeated, sampling, seed, on_progress, drawn), chosen, choosing)

    def _best(
        self, completions: "list[Completion]", chosen: BestOfNConfig, on_progress: "OnProgress"
    ) -> "list[Completion]":
        from dpr_core.data.encoding import TokenSequence
        from dpr_core.rollouts.best_of_n import best_of_each, mean_log_probs, sequence_returns

        assert self.reward is not None
        scored = self.reward([TokenSequence(c.prompt, c.response) for c in completions], on_progress)
        by_reward = chosen.by == "reward"
        scores = (
            sequence_returns(scored.rewards, scored.mask) if by_reward else mean_log_probs(scored.log_sft, scored.mask)
        )
        return [completions[i] for i in best_of_each(scores, chosen.n)]

    def measure(
        self, sequences: "Sequence[TokenSequence]", entropy_at: float | None, on_progress: "OnProgress | None" = None
    ) -> Measured:
        """What the passes for the reward and for the KL give, entropies at a temperature with them."""
        import torch

        from dpr_core.models.scoring import score_with_kl

        if self.policy is not self.sft:
            if self.reward is not None:
                return Measured(*self.reward.with_kl(sequences, self.policy, entropy_at, on_progress))
            budget = self.settings.execution.tokens_per_micro_batch
            scores = score_with_kl(self.policy, [self.sft], sequences, budget, entropy_at, on_progress)
            return Measured(None, *scores[1:])
        nothing = torch.zeros(len(sequences), max(len(s.response) for s in sequences))
        has_kl = not isinstance(self.settings.policy, BestOfNConfig)
        scored = self.reward(sequences, on_progress) if self.reward else None
        return Measured(scored, nothing if has_kl else None, None)

    def entropies(self, sequences: "Sequence[TokenSequence]", temperature: float) -> "Tensor":
        """(B, T) the exact entropy at a temperature in the state in front of each token, by a pass of its own."""
        from dpr_core.models.extrapolation import ContrastivePolicy
        from dpr_core.models.scoring import score, score_with_kl

        budget = self.settings.execution.tokens_per_micro_batch
        if isinstance(self.policy, ContrastivePolicy):
            return score_with_kl(self.policy, [self.sft], sequences, budget, temperature)[2]
        return score(self.policy, sequences, budget, temperature=temperature, entropy=True).entropies


def conversations(
    settings: AnswerConfig,
    tokenizer: "PreTrainedTokenizerBase",
    renderer: "Renderer",
    questions: "Sequence[Question]",
) -> "list[Conversation | RenderedConversation]":
    """The questions to be asked, each with its temperature: the policy's own, the benchmark's, or the stage's."""
    from dpr_core.evaluation import benchmarks
    from dpr_core.rollouts.multi_turn import tokenize_question

    def temperature(question: "Question") -> float:
        own = (
            None
            if isinstance(settings.policy, SFTPolicyConfig)
            else benchmarks.temperature(settings.benchmark, question)
        )
        return settings.drawn_at if own is None else own

    return [
        tokenize_question(
            tokenizer,
            renderer,
            question.id,
            question.turns,
            question.system,
            temperature(question),
            settings.max_prompt_tokens,
        )
        for question in questions
    ]


def kept_or_last(run: Artifact, kl: float) -> Path:
    """The policy that a run kept at a KL, or the one that it ended with where it never came so far."""
    if reaches(run, kl):
        return kept(run, kl)
    logger.warning(
        "answer: the KL to SFT of %s never reached %g; the policy that it ended with answers", run.id[:8], kl
    )
    return run.path / "policy"


def reaches(run: Artifact, kl: float) -> bool:
    """Whether a run that was to keep a policy at a KL came so far."""
    asked = kl in (run.config.get("keep_at_kl") or ())
    return not asked or (run.path / KEPT / f"{kl:g}").is_dir()


def answering(settings: AnswerConfig, lineage: Lineage, source: Artifact) -> Answering:
    """The policy that the settings make of an artifact."""
    from dpr_core.models.checkpoints import extrapolate
    from dpr_core.models.extrapolation import ContrastivePolicy
    from dpr_core.models.sharding import to_device_or_shard

    control, execution = settings.policy, settings.execution
    made_of = {AsTrainedConfig: source.stage, SFTPolicyConfig: "sft", KeptConfig: "reinforce"}.get(
        type(control), "reward"
    )
    if source.stage != made_of:
        raise UsageError(
            f"a policy of type {control.type} is made of {STAGES_SAID[made_of]}, but {source.id[:8]} is of stage "
            f"{source.stage}"
        )
    if isinstance(control, ExtrapolatedConfig | ContrastiveConfig) and lineage.definition(source).teacher is not None:
        raise UsageError(
            f"a policy of type {control.type} is made of pi_SFT and its reference, but reward {source.id[:8]} has a "
            "teacher; make it of a reward without one"
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
        assert control.k is not None
        extrapolate(policy.model, reference.model, control.k)
        to_device_or_shard(policy.freeze(), execution.launch)
    elif source.stage not in ("sft", "reward"):
        folder = kept_or_last(source, control.kl) if isinstance(control, KeptConfig) else lineage.policy_folder(source)
        policy = load(folder, frozen=True)
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
