"""Settings of the backbone: a pretrained model, or a tiny one that the lab builds."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from dpr_core.config.base import Config, Line, StageConfig
from dpr_core.config.data import AdditionsConfig, LabTask, LabWordProblemsConfig
from dpr_core.config.execution import ExecutionConfig

Family = Literal["llama", "qwen2", "mistral", "gemma3"]


class PretrainedBackboneConfig(Config):
    """A causal language model from the hub or from a local folder; safetensors only."""

    type: Literal["pretrained"] = "pretrained"
    """Which kind of backbone this is."""

    name: Line = Field(min_length=1)
    """Hub id, such as meta-llama/Llama-3.1-8B, or a local folder."""

    revision: Line | None = None
    """Commit of the hub repository. Pin it: an unpinned name is not the same model tomorrow."""

    content: str | None = None
    """Hash of the files of a local folder, filled in when the stage starts."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of activations. Weights are kept in float32, and log-probs are always computed in float32."""

    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation of transformers."""

    gguf_file: Line | None = None
    """A GGUF file in that folder or repository, whose quantised weights are trained from, in place of safetensors."""

    @model_serializer(mode="wrap")
    def _without_gguf(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """So that backbones of safetensors keep the keys that they had before there could be others."""
        return {name: value for name, value in handler(self).items() if name != "gguf_file" or value is not None}

    @field_validator("gguf_file")
    @classmethod
    def _a_name(cls, name: str | None) -> str | None:
        if name is not None and (not name.endswith(".gguf") or "/" in name or name.startswith(".")):
            raise ValueError(f"the name of a .gguf file in the folder or repository `name` is expected (got {name!r})")
        return name

    @property
    def takes_float32(self) -> bool:
        """Whether the attention computes in numbers of 32 bits too."""
        return self.attention != "flash_attention_2"


class LabBackboneConfig(StageConfig):
    """A tiny from-scratch network of one of the four families, taught a skill that it mostly does not show."""

    positions: ClassVar[int] = 1024
    """Context length of every one."""

    type: Literal["lab"] = "lab"
    """Which kind of backbone this is."""

    family: Family = "llama"
    """Which transformers classes and which tokenizer conventions to use."""

    task: LabTask = AdditionsConfig()
    """The skill."""

    width: int = Field(96, ge=8, le=1024)
    """Hidden size."""

    layers: int = Field(3, ge=1, le=32)
    """Transformer blocks."""

    heads: int = Field(4, ge=1, le=128)
    """Attention heads of a block."""

    feed_forward: int = Field(256, ge=8, le=4096)
    """Inner size of the feed-forward blocks."""

    teach_learning_rate: float = Field(3e-3, gt=0)
    """Phase 1 teaches the skill on careful answers alone."""

    teach_batch_size: int = Field(16, ge=1, le=2**16)
    """Answers of one step of phase 1."""

    teach_max_steps: int = Field(1500, ge=1, le=10**7)
    """Phase 1 ends when greedy probes pass, and fails if they have not by this step."""

    probe_accuracy: float = Field(0.95, ge=0, le=1)
    """Accuracy on training prompts that a greedy probe must reach twice running."""

    probe_every: int = Field(50, ge=1, le=10**7)
    """Steps between probes."""

    blend_steps: int = Field(200, ge=0, le=10**7)
    """Phase 2 trains on a careless mixture, so that the skill is there but seldom shown."""

    blend_learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate of phase 2, which decays to a tenth of it."""

    blend_batch_size: int = Field(32, ge=1, le=2**16)
    """Answers of one step of phase 2."""

    blend_careful: float = Field(0.10, ge=0, le=1)
    """Share of careful answers in that mixture."""

    blend_jump: float = Field(0.30, ge=0, le=1)
    """Share of answers that start carefully and jump to the end part-way; the rest is the bare answer."""

    blend_slips: float = Field(0.40, ge=0, le=1)
    """Share of answers that contain a wrong step."""

    execution: ExecutionConfig = ExecutionConfig(threads=1)
    """How the work is done."""

    @field_validator("task")
    @classmethod
    def _within_its_reach(cls, task: LabTask) -> LabTask:
        if isinstance(task, LabWordProblemsConfig):
            raise ValueError(
                "a network as small as the lab's cannot read word problems; take a pretrained backbone, as the recipe "
                "demo-real does"
            )
        return task

    @model_validator(mode="after")
    def _consistent_sizes(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(f"width ({self.width}) must be an even multiple of heads ({self.heads})")
        if self.blend_careful + self.blend_jump > 1:
            raise ValueError("blend_careful and blend_jump are shares of one mixture: together at most 1")
        return self


Backbone = Annotated[PretrainedBackboneConfig | LabBackboneConfig, Field(discriminator="type")]
