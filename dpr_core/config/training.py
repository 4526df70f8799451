"""SFT, reward and REINFORCE. Defaults are the paper's (its tables 3 and 4); where the paper is silent, they say so."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from dpr_core.config.base import Config, StageConfig, type_if_unset
from dpr_core.config.execution import Execution
from dpr_core.config.model import PretrainedBackbone


class Lengths(Config):
    """Limits in tokens."""

    max_prompt_tokens: int = Field(1024, ge=1)
    """Longer prompts are left out, and counted."""

    max_response_tokens: int = Field(1024, ge=1)
    """Longer responses are cut, without an end token, and counted."""


Beta = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Config):
    """Adam with warm-up and cosine decay."""

    learning_rate: float = Field(gt=0)
    """Peak learning rate."""

    batch_size: int = Field(ge=1)
    """Sequences of one optimizer step, over all processes and micro-batches."""

    warmup_ratio: float = Field(0.03, ge=0, le=1)
    """Share of the steps in which the learning rate rises from 0."""

    final_learning_rate_share: float = Field(0.1, ge=0, le=1)
    """Cosine decay ends at this share of the peak (OpenRLHF's default)."""

    adam_betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Decay rates of Adam's moments (OpenRLHF's default)."""

    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay."""

    max_gradient_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm (OpenRLHF's default)."""


class SFTConfig(StageConfig, Optimizer, Lengths):
    """Supervised fine-tuning on responses, end token included."""

    backbone: PretrainedBackbone | None = None
    """Filled in from the pipeline's backbone; empty where a backbone stage built it."""

    learning_rate: float = Field(5e-6, gt=0)
    """Peak learning rate."""

    batch_size: int = Field(256, ge=1)
    """Sequences of one optimizer step, over all processes and micro-batches."""

    epochs: int = Field(1, ge=1)
    """Passes over the demonstrations. The paper's half-way checkpoint has seen half of the samples: one pass."""

    checkpoints: tuple[float, ...] = (0.5, 1.0)
    """Fractions of the run whose weights are kept. The end is always kept."""

    execution: Execution = Execution()
    """How the work is done."""

    @field_validator("checkpoints")
    @classmethod
    def _fractions(cls, fractions: tuple[float, ...]) -> tuple[float, ...]:
        for fraction in fractions:
            if not 0 < fraction <= 1:
                raise ValueError(f"a checkpoint is a fraction of the run, above 0 and at most 1 (got {fraction})")
        return tuple(sorted({*fractions, 1.0}))


class RewardConfig(StageConfig):
    """Which two models make the token reward, and by which formula."""

    formula: Literal["baseline_relative", "with_value", "without_baseline"] = "baseline_relative"
    """Eq. 5 of the paper, or one of its two ablations."""

    reference: float = Field(0.5, gt=0, lt=1)
    """Fraction alpha of the SFT run whose checkpoint is the reference."""

    probe_demonstrations: int = Field(256, ge=1)
    """Demonstrations that the reward is measured on; those that SFT saw cut or not at all are passed over."""

    execution: Execution = Execution()
    """How the work is done."""


class Algorithm1(Config):
    """The paper's Algorithm 1 to the letter: sum over tokens, mean over sequences; no clip, no KL, no whitening."""

    type: Literal["algorithm1"] = "algorithm1"
    """Which kind of algorithm this is."""

    gamma: float = Field(1.0, gt=0, le=1)
    """Discount of the return."""


class ClippedReinforce(Config):
    """What the methods that run on OpenRLHF's REINFORCE++ share."""

    gamma: float = Field(1.0, gt=0, le=1)
    """Discount of the return."""

    kl_weight: float = Field(1e-5, ge=0)
    """Weight of the per-token KL estimate that is subtracted from the reward."""

    kl_bound: float = Field(10.0, gt=0)
    """The per-token KL estimate is clamped to plus or minus this."""

    ratio_clip: float = Field(0.2, gt=0)
    """PPO's clip of the probability ratio (the paper's "value clip": there is no critic)."""

    whiten: bool = True
    """Shift and scale the advantages by one mean and one deviation over the rollout batch."""


class ReinforcePlusPlus(ClippedReinforce):
    """What the paper's experiments ran: OpenRLHF's REINFORCE++ on the dense reward."""

    type: Literal["reinforce_plus_plus"] = "reinforce_plus_plus"
    """The name of this algorithm."""


class SequenceReinforce(ClippedReinforce):
    """The paper's SR: the same total reward, paid at the last token alone."""

    type: Literal["sequence_reinforce"] = "sequence_reinforce"
    """The name of this algorithm."""


Algorithm = Annotated[
    ReinforcePlusPlus | SequenceReinforce | Algorithm1,
    Field(discriminator="type"),
    type_if_unset("reinforce_plus_plus"),
]


class KLStop(Config):
    """Label-free guard: when the policy's KL to SFT passes the bound, go back one iteration and stop."""

    max_sequence_kl: float = Field(0.5, gt=0)
    """Bound on the mean over sequences of the summed log-ratio to SFT, in nats."""


class ReinforceConfig(StageConfig, Optimizer, Lengths):
    """Token-level REINFORCE against the recovered reward."""

    algorithm: Algorithm = ReinforcePlusPlus()
    """How rewards become a loss."""

    learning_rate: float = Field(5e-7, gt=0)
    """Peak learning rate."""

    batch_size: int = Field(128, ge=1)
    """Sequences of one optimizer step, over all processes and micro-batches."""

    rollout_batch_size: int = Field(1024, ge=1)
    """Prompts of one iteration."""

    samples_per_prompt: int = Field(1, ge=1)
    """Responses drawn for each prompt."""

    temperature: float = Field(1.0, gt=0)
    """Sampling temperature of the rollouts. Rewards are scored at temperature 1 whatever this is."""

    iterations: int | None = Field(None, ge=1)
    """Rollout batches to learn from; none means one pass over the prompts (the paper does not say)."""

    guard: KLStop | None = None
    """Stop before over-optimisation. The paper has none."""

    execution: Execution = Execution()
    """How the work is done."""

    @model_validator(mode="after")
    def _algorithm_1_steps_once(self) -> Self:
        rollouts = self.rollout_batch_size * self.samples_per_prompt
        if self.algorithm.type == "algorithm1" and self.batch_size != rollouts:
            raise ValueError(
                f"algorithm1 takes one step on each rollout batch, so batch_size ({self.batch_size}) must be "
                f"rollout_batch_size x samples_per_prompt ({rollouts})"
            )
        return self
