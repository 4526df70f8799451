"""Settings of methods without a reward: SPIN, GSIL and continued SFT. Defaults train less than the authors of SPIN and
GSIL do; the presets `spin` and `gsil` are what these run."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dpr_core.config.base import Config, StageConfig, Temperature, type_if_unset
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.training import LengthsConfig, OptimizerConfig, SFTLoss


class SpinConfig(Config):
    """Self-play fine-tuning (Chen et al., 2024): tell a demonstration from the opponent's own response."""

    type: Literal["spin"] = "spin"
    """Which kind of method this is."""

    beta: float = Field(0.1, gt=0)
    """Scale of the difference of log-ratios."""

    last_beta: float | None = Field(None, gt=0)
    """The same in the last of several rounds, where the authors' is 5; none leaves it as it is."""


class GsilConfig(Config):
    """Generalised self-imitation (Xiao et al., 2024): a density-ratio loss for demonstrations and own responses."""

    type: Literal["gsil"] = "gsil"
    """Which kind of method this is."""

    loss: Literal["bernoulli", "brier", "hinge", "kliep", "lsif"] = "bernoulli"
    """Which density-ratio loss."""

    scale: float = Field(0.01, gt=0)
    """a in u = a (log pi - log pi_opponent) + c."""

    shift: float = 2.0
    """c in the same."""


SelfPlayMethod = Annotated[SpinConfig | GsilConfig, Field(discriminator="type"), type_if_unset("spin")]


class SelfPlayConfig(StageConfig, OptimizerConfig, LengthsConfig):
    """Rounds of: freeze the policy as the opponent, draw its responses, learn to prefer the demonstrations."""

    unless_changed: ClassVar[Mapping[str, Any]] = {"later_from_round": 2, "optimizer": "adamw"}

    type: Literal["self_play"] = "self_play"
    """Which kind of stage this is."""

    method: SelfPlayMethod = SpinConfig()
    """What is learned from a demonstration and the opponent's response to the same prompt."""

    rounds: int = Field(3, ge=1, le=1000)
    """Opponents, one after the other. GSIL's authors use one."""

    pairs: int | None = Field(None, ge=1, le=10**8)
    """Demonstrations drawn for each round, if there are so many; none means all."""

    epochs: int = Field(1, ge=1, le=10_000)
    """Passes over the pairs of a round. SPIN's authors make six in every round, GSIL's one."""

    mix_previous: bool = True
    """From the second round on, learn from the previous round's pairs too (as SPIN's authors do)."""

    temperature: Temperature = 1.0
    """Sampling temperature of the opponent; 0 is greedy, as in the script of GSIL's authors."""

    learning_rate: float = Field(5e-7, gt=0)
    """Peak learning rate of the first round."""

    later_learning_rate: float | None = Field(1e-7, gt=0)
    """Peak learning rate of later rounds; none leaves it the same."""

    later_from_round: int = Field(2, ge=2, le=1000)
    """The first of these. SPIN's authors lower it in their third round."""

    batch_size: int = Field(64, ge=1, le=2**20)
    """Pairs of one optimizer step."""

    warmup_ratio: float = Field(0.1, ge=0, le=1)
    """Share of a round's steps in which the learning rate rises from 0."""

    decay: Literal["cosine", "linear"] = "linear"
    """How the learning rate falls after that."""

    final_learning_rate_share: float = Field(0.0, ge=0, le=1)
    """The decay ends at this share of the peak."""

    execution: ExecutionConfig = ExecutionConfig()
    """How the work is done."""

    @classmethod
    def identity_in(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """One beta in all rounds leaves no trace: artifacts from before there could be two keep their keys."""
        kept = super().identity_in(values)
        if "method" in kept:
            kept["method"] = {k: v for k, v in kept["method"].items() if not (k == "last_beta" and v is None)}
        return kept


class ContinuedSFTConfig(StageConfig, OptimizerConfig, LengthsConfig):
    """A control that the paper lacks: more supervised fine-tuning of the SFT model, on the same demonstrations."""

    unless_changed: ClassVar[Mapping[str, Any]] = {"loss": "nll", "optimizer": "adamw"}

    type: Literal["continued_sft"] = "continued_sft"
    """Which kind of stage this is."""

    loss: SFTLoss = "nll"
    """Of a token: its negative log-likelihood, or that times its probability (DFT)."""

    learning_rate: float = Field(5e-6, gt=0)
    """Peak learning rate. Tune it: the control is only fair at its best."""

    batch_size: int = Field(256, ge=1, le=2**20)
    """Sequences of one optimizer step, over all processes and micro-batches."""

    epochs: int = Field(1, ge=1, le=10_000)
    """Passes over the demonstrations."""

    execution: ExecutionConfig = ExecutionConfig()
    """How the work is done."""
