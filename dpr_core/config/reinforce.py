"""Settings of REINFORCE: algorithms, guards and the loop. Defaults are the paper's (its table 4)."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from dpr_core.config.base import LEAST_TEMPERATURE, Config, FromList, StageConfig, type_if_unset
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.rollouts import InProcessConfig, Rollouts
from dpr_core.config.training import LengthsConfig, LoRAConfig, OptimizerConfig
from dpr_core.redaction import shown_value


class Algorithm1Config(Config):
    """The paper's Algorithm 1 to the letter: sum over tokens, mean over sequences; no clip, no KL, no whitening."""

    type: Literal["algorithm1"] = "algorithm1"
    """Which kind of algorithm this is."""

    gamma: float = Field(1.0, ge=0, le=1)
    """Discount of the return; at 0 it is the token's own reward."""


class KLLinearConfig(Config):
    """The KL weight moves along a line, from `kl_weight` in the first iteration to another in the last."""

    type: Literal["linear"] = "linear"
    """Which kind of schedule this is."""

    final_weight: float = Field(ge=0)
    """KL weight of the last iteration."""


class KLTargetConfig(Config):
    """The KL weight follows the measured KL: more of it above the target, less below (Ziegler et al., 2019)."""

    type: Literal["target"] = "target"
    """Which kind of schedule this is."""

    sequence_kl: float = Field(gt=0)
    """The KL to SFT of a response to be held, in nats."""

    gain: float = Field(0.2, gt=0, lt=1)
    """An iteration changes the weight by at most this share."""


def _whitening(value: Any) -> Any:
    # As it was before there was a third way, so that keys stay.
    named = {"on": True, "off": False}.get(value, value) if isinstance(value, str) else value
    if not isinstance(named, bool) and named != "batch_mean":
        raise ValueError(f"on, off or batch_mean is expected (got {shown_value(value)})")
    return named


Whitening = Annotated[bool | Literal["batch_mean"], BeforeValidator(_whitening)]


def extrapolation(kl_weight: float, taught: bool = False) -> float:
    """lambda = 1 + 1 / beta: of all policies pi_ref (pi_SFT / pi_ref)^lambda has the most of a response's reward less
    beta KL(pi || pi_SFT). With a teacher that is pi_SFT (pi_T / pi_ref)^lambda, and lambda = 1 / beta."""
    return (not taught) + 1 / kl_weight if kl_weight else math.inf


def _lambda_note(kl_weight: float) -> dict[str, str]:
    return {"kl_weight": f"lambda is {extrapolation(kl_weight):g} here, without a teacher and reward.normalise."}


class ClippedReinforceConfig(Config):
    """What the methods that run on OpenRLHF's REINFORCE++ share."""

    gamma: float = Field(1.0, ge=0, le=1)
    """Discount of the return; at 0 it is the token's own reward."""

    kl_weight: float = Field(1e-5, ge=0)
    """Weight beta of the per-token KL estimate that is subtracted from the reward. With pi_SFT at a distance of 1 from
    the reference, the best policy is at lambda = 1 + 1 / beta."""

    kl_schedule: Annotated[KLLinearConfig | KLTargetConfig, Field(discriminator="type")] | None = None
    """Beyond the paper: how that weight changes from iteration to iteration; none leaves it as it is."""

    kl_bound: float = Field(10.0, gt=0)
    """The per-token KL estimate is clamped to plus or minus this."""

    ratio_clip: float = Field(0.2, gt=0)
    """PPO's clip of the probability ratio (the paper's "value clip": there is no critic)."""

    whiten: Whitening = True
    """Shift and scale the advantages by one mean and one deviation over the rollout batch (`on` or true); not at all
    (`off` or false); or, beyond the paper, `batch_mean`: shift them alone."""

    baseline: Literal["none", "position", "expected"] = "none"
    """Beyond the paper: `position` subtracts from each return the mean of the other responses' there, `expected` the
    reward that the policy expects of its next token, exactly, from the logits."""

    def notes(self) -> dict[str, str]:
        return _lambda_note(self.kl_weight)

    @model_validator(mode="after")
    def _target_needs_weight(self) -> Self:
        _check_target(self.kl_schedule, self.kl_weight)
        return self


def _check_target(schedule: KLLinearConfig | KLTargetConfig | None, weight: float) -> None:
    if isinstance(schedule, KLTargetConfig) and weight == 0:
        raise ValueError("a kl_schedule of type target multiplies kl_weight, which must be above 0 for that")


class ReinforcePlusPlusConfig(ClippedReinforceConfig):
    """What the paper's experiments ran: OpenRLHF's REINFORCE++ on the dense reward."""

    type: Literal["reinforce_plus_plus"] = "reinforce_plus_plus"
    """The name of this algorithm."""


class SequenceReinforceConfig(ClippedReinforceConfig):
    """The paper's SR: the same total reward, paid at the last token alone."""

    type: Literal["sequence_reinforce"] = "sequence_reinforce"
    """The name of this algorithm."""


class PPOConfig(ClippedReinforceConfig):
    """The paper's PPO: the sentence-level reward of SR, with a learned critic."""

    type: Literal["ppo"] = "ppo"
    """The name of this algorithm."""

    gae_lambda: float = Field(1.0, ge=0, le=1)
    """Lambda of generalised advantage estimation (OpenRLHF's default is 1)."""

    value_clip: float | None = Field(None, gt=0)
    """The critic's new values are held within this distance, in units of the return, of those before the iteration's
    update. None leaves them free: a distance far below the returns' own scale keeps the critic from learning them."""

    critic_learning_rate: float = Field(9e-6, gt=0)
    """Peak learning rate of the critic (OpenRLHF's default)."""

    critic_warmup_iterations: int = Field(0, ge=0, le=10**7)
    """Iterations in which only the critic learns."""


class FullVocabularyConfig(Config):
    """Beyond the paper, at gamma 0: the exact gradient over the whole vocabulary in every state that was drawn."""

    type: Literal["full_vocabulary"] = "full_vocabulary"
    """The name of this algorithm."""

    gamma: float = 0.0
    """Discount of the return: 0 and nothing else, since what comes after a token that was not drawn is not known."""

    kl_weight: float = Field(1e-5, ge=0)
    """Weight of the exact KL(pi || pi_SFT) in every state."""

    kl_schedule: Annotated[KLLinearConfig | KLTargetConfig, Field(discriminator="type")] | None = None
    """How that weight changes from iteration to iteration; none leaves it as it is."""

    def notes(self) -> dict[str, str]:
        return _lambda_note(self.kl_weight)

    @model_validator(mode="after")
    def _of_the_next_token(self) -> Self:
        if self.gamma != 0:
            raise ValueError(
                f"full_vocabulary is exact at gamma 0 alone (got {self.gamma:g}): the return of a token that was not "
                "drawn is not known; leave gamma out, or choose reinforce_plus_plus with baseline=expected"
            )
        _check_target(self.kl_schedule, self.kl_weight)
        return self


Algorithm = Annotated[
    ReinforcePlusPlusConfig | SequenceReinforceConfig | PPOConfig | Algorithm1Config | FullVocabularyConfig,
    Field(discriminator="type"),
    type_if_unset("reinforce_plus_plus"),
]


class KLStopConfig(Config):
    """Label-free guard: when the policy's KL to SFT passes the bound, go back one iteration and stop."""

    type: Literal["kl_stop"] = "kl_stop"
    """Which kind of guard this is."""

    max_sequence_kl: float = Field(0.5, gt=0)
    """Bound on the mean over sequences of the summed log-ratio to SFT, in nats."""


class WitnessStopConfig(Config):
    """Label-free guard: stop when what SFT, or SFT against its reference, says of the responses has clearly fallen."""

    type: Literal["witness_stop"] = "witness_stop"
    """Which kind of guard this is."""

    window: int = Field(4, ge=1, le=10**6)
    """Iterations over which each witness is averaged."""

    stop_beyond: float = Field(4.0, gt=0)
    """The run ends where that mean is more standard errors than this below its best so far."""

    keep_within: float = Field(1.5, ge=0)
    """A policy is worth going back to where no witness is more standard errors than this below that best, or below
    any single value within the window."""

    gain_beyond: float = Field(3.0, ge=0)
    """And where SFT's lead over the reference has grown since the start, by more standard errors than this."""


GuardConfig = KLStopConfig | WitnessStopConfig


class ReinforceConfig(StageConfig, OptimizerConfig, LengthsConfig):
    """Token-level REINFORCE against the recovered reward."""

    unless_changed: ClassVar[Mapping[str, Any]] = {"optimizer": "adamw"}

    algorithm: Algorithm = ReinforcePlusPlusConfig()
    """How rewards become a loss."""

    learning_rate: float = Field(5e-7, gt=0)
    """Peak learning rate."""

    batch_size: int = Field(128, ge=1, le=2**20)
    """Sequences of one optimizer step, over all processes and micro-batches."""

    rollout_batch_size: int = Field(1024, ge=1, le=2**24)
    """Prompts of one iteration."""

    samples_per_prompt: int = Field(1, ge=1, le=2**16)
    """Responses drawn for each prompt."""

    temperature: float = Field(1.0, ge=LEAST_TEMPERATURE, le=100)
    """Sampling temperature of the rollouts. The policy that draws is the one that learns: its log-probs, their ratio,
    the KL and the entropy are those at this temperature. Rewards are scored at 1 whatever this is."""

    iterations: int | None = Field(None, ge=1, le=10**7)
    """Rollout batches to learn from; none means one pass over the prompts (the paper does not say)."""

    guard: Annotated[GuardConfig, Field(discriminator="type"), type_if_unset("kl_stop")] | None = None
    """Stop before over-optimisation, and go back to a policy that was still good. The paper has none."""

    keep_at_kl: Annotated[tuple[Annotated[float, Field(gt=0, le=1000)], ...], FromList] = Field((), max_length=32)
    """The policy is kept the first time that its KL to SFT reaches each of these, so that it can be evaluated there."""

    lora: LoRAConfig | None = None
    """Beyond the paper: train adapters alone, which takes a higher learning rate; none trains all weights."""

    rollouts: Rollouts = InProcessConfig()
    """What draws the responses."""

    execution: ExecutionConfig = ExecutionConfig()
    """How the work is done."""

    @property
    def expected_baseline(self) -> bool:
        """Whether every rollout needs the policy's expectation of the reward."""
        return getattr(self.algorithm, "baseline", "none") == "expected"

    @property
    def over_vocabulary(self) -> bool:
        """Whether the reward of every token of the vocabulary is asked for."""
        return self.expected_baseline or isinstance(self.algorithm, FullVocabularyConfig)

    @classmethod
    def identity_in(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """An engine in the process leaves no trace, nor does keeping no policies: artifacts from before there were
        others keep their keys."""
        kept = super().identity_in(values)
        if not kept.get("keep_at_kl"):
            kept.pop("keep_at_kl", None)
        rollouts = {name: value for name, value in kept.pop("rollouts", {}).items() if name != "execution"}
        return kept if rollouts.get("type", "in_process") == "in_process" else {**kept, "rollouts": rollouts}

    @field_validator("keep_at_kl")
    @classmethod
    def _rising(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        names = [f"{value:g}" for value in values]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]} stands here twice, and one policy is kept at each")
        return tuple(sorted(values))

    @model_validator(mode="after")
    def _one_step_per_batch(self) -> Self:
        rollouts = self.rollout_batch_size * self.samples_per_prompt
        if self.algorithm.type == "algorithm1" and self.batch_size != rollouts:
            raise ValueError(
                f"algorithm1 takes one step on each rollout batch, so batch_size ({self.batch_size}) must be "
                f"rollout_batch_size x samples_per_prompt ({rollouts})"
            )
        return self
