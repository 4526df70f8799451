"""Settings of training: lengths, optimizer, LoRA and SFT. Defaults are the paper's; where it is silent, they say so."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from dpr_core.config.base import Config, FromList, Line, StageConfig
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.model import PretrainedBackboneConfig


class LengthsConfig(Config):
    """Limits in tokens."""

    max_prompt_tokens: int = Field(1024, ge=1, le=2**20)
    """Longer prompts are left out, and counted."""

    max_response_tokens: int = Field(1024, ge=1, le=2**20)
    """Longer responses are cut, without an end token, and counted."""


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    """An optimizer with warm-up and decay."""

    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    """AdamW, or RMSprop with torch's own constants, as SPIN's and GSIL's authors use it."""

    learning_rate: float = Field(gt=0)
    """Peak learning rate."""

    batch_size: int = Field(ge=1, le=2**20)
    """Sequences of one optimizer step, over all processes and micro-batches."""

    warmup_ratio: float = Field(0.03, ge=0, le=1)
    """Share of the steps in which the learning rate rises from 0."""

    decay: Literal["cosine", "linear"] = "cosine"
    """How the learning rate falls after that."""

    final_learning_rate_share: float = Field(0.1, ge=0, le=1)
    """The decay ends at this share of the peak (OpenRLHF's default)."""

    adam_betas: Annotated[tuple[Beta, Beta], FromList] = (0.9, 0.95)
    """Decay rates of Adam's moments (OpenRLHF's default); RMSprop has none."""

    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay, of AdamW alone."""

    max_gradient_norm: float = Field(1.0, ge=0)
    """Gradients are scaled down to this norm (OpenRLHF's default); 0 leaves them as they are."""

    @model_validator(mode="after")
    def _decoupled(self) -> Self:
        if self.optimizer == "rmsprop" and self.weight_decay:
            raise ValueError("weight_decay is decoupled, which rmsprop knows nothing of: leave it at 0, or take adamw")
        return self


class LoRAConfig(Config):
    """Train low-rank adapters in place of all weights. Checkpoints have them merged in."""

    rank: int = Field(16, ge=1, le=2**16)
    """Rank of each adapter."""

    alpha: float = Field(32.0, gt=0)
    """Adapters are scaled by alpha / rank."""

    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of an adapter's inputs that are dropped in training; never in scoring or sampling."""

    targets: Annotated[tuple[str, ...], FromList] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    """Which linear layers have one; by default all those of the four families' blocks."""


SFTLoss = Literal["nll", "dft"]
"""Names of losses of demonstrations in `dpr_core.losses`."""


class CheckpointConfig(Config):
    """A checkpoint that another program trained: weights, or LoRA adapters of the backbone; safetensors only."""

    name: Line = Field(min_length=1)
    """A local folder, or a hub id."""

    revision: Line | None = None
    """Commit of the hub repository."""

    content: str | None = None
    """Hash of the files that are read of a local folder, filled in when the stage starts."""


class ImportedConfig(Config):
    """Two checkpoints of one SFT run that was done elsewhere. `dpr import` writes this section."""

    final: CheckpointConfig
    """The end of that run: pi_SFT."""

    reference: CheckpointConfig
    """An earlier one: pi_ref."""

    def hides(self, backbone: Any) -> bool:
        """Whether a backbone is no more than the end of the run, by which networks are computed: what the run started
        from is then unknown."""
        named = getattr(backbone, "name", None), getattr(backbone, "revision", None)
        return named == (self.final.name, self.final.revision)


class SFTConfig(StageConfig, OptimizerConfig, LengthsConfig):
    """Supervised fine-tuning on responses, end token included."""

    unless_changed: ClassVar[Mapping[str, Any]] = {"loss": "nll", "optimizer": "adamw", "imported": None}

    backbone: PretrainedBackboneConfig | None = None
    """Filled in from the pipeline's backbone; empty where a backbone stage built it."""

    learning_rate: float = Field(5e-6, gt=0)
    """Peak learning rate."""

    batch_size: int = Field(256, ge=1, le=2**20)
    """Sequences of one optimizer step, over all processes and micro-batches."""

    epochs: int = Field(1, ge=1, le=10_000)
    """Passes over the demonstrations. The paper's half-way checkpoint has seen half of the samples: one pass."""

    loss: SFTLoss = "nll"
    """Of a token: its negative log-likelihood, or, beyond the paper, that times its probability (DFT)."""

    checkpoints: Annotated[tuple[float, ...], FromList] = Field((0.5, 1.0), max_length=1000)
    """Fractions of the run whose weights are kept. The end is always kept."""

    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Beyond the paper: also keep a moving average of the weights, as a reference (`reward.reference: ema`)."""

    lora: LoRAConfig | None = None
    """Beyond the paper: train adapters alone, which takes a higher learning rate, some 1e-4; none trains all."""

    imported: ImportedConfig | None = None
    """Checkpoints that are taken in place of training; what is said of an optimizer is then of no account."""

    execution: ExecutionConfig = ExecutionConfig()
    """How the work is done."""

    @model_validator(mode="after")
    def _imported_pair(self) -> Self:
        if self.imported is not None and (len(self.checkpoints) != 2 or self.ema_decay is not None):
            raise ValueError(
                "what is imported is the end of a run and one reference: `checkpoints` has its share of the run and 1, "
                "and there is no ema_decay"
            )
        return self

    @model_validator(mode="after")
    def _ema_of_weights(self) -> Self:
        if self.lora is not None and self.ema_decay is not None:
            raise ValueError(
                "ema_decay averages weights, and the mean of adapters is not the adapter of the mean; set only one"
            )
        return self

    @field_validator("checkpoints")
    @classmethod
    def _fractions(cls, fractions: tuple[float, ...]) -> tuple[float, ...]:
        for fraction in fractions:
            if not 0 < fraction <= 1:
                raise ValueError(f"a checkpoint is a fraction of the run, above 0 and at most 1 (got {fraction})")
        return tuple(sorted({*fractions, 1.0}))
