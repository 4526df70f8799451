"""Settings of the recovered reward (Eq. 5, its ablations, options beyond the paper) and of its diagnostics."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from dpr_core.config.base import Config, FromList, StageConfig
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.model import PretrainedBackboneConfig

BACKBONE = 0.0
"""The start of the SFT run: the pretrained backbone itself."""

SFT = 1.0
"""Its end: pi_SFT."""

Fraction = Annotated[
    float, Field(ge=0, le=1), BeforeValidator(lambda value: BACKBONE if value == "backbone" else value)
]
"""A place in the SFT run. 0, or `backbone`, is the backbone that it starts from."""

Formula = Literal["baseline_relative", "with_value", "without_baseline", "random_sign"]
"""Names of functions in `dpr_core.rewards`."""

PER_TOKEN = ("baseline_relative", "without_baseline")
"""Formulas of a token's own log-probs alone, so that there is a reward of every token of the vocabulary at once."""

NOT_PER_TOKEN = (
    "reward.formula={} is not made of a token's own log-probs alone, so the rewards of tokens that were not drawn are "
    "not known, and reinforce.algorithm needs them (baseline=expected, or type=full_vocabulary); choose "
    "baseline_relative or without_baseline"
)


Arithmetic = Literal["float32", "tf32", "bfloat16"]
"""How the frozen scorers compute: in float32, in float32 with products of TensorFloat-32 on a GPU (elsewhere in
float32; not yet measured on a GPU), or with activations and weights rounded to bfloat16."""

AS_SFT: Literal["as_sft"] = "as_sft"
MEASURED: Literal["measured"] = "measured"


class RewardConfig(StageConfig):
    """Which two models make the token reward, and by which formula."""

    unless_changed: ClassVar[Mapping[str, Any]] = {"teacher": None}

    formula: Formula = "baseline_relative"
    """Eq. 5 of the paper, one of its two ablations, or a control: Eq. 5 with a sign drawn at random for every token."""

    reference: Fraction | Annotated[tuple[Fraction, ...], FromList] | Literal["ema", "validated"] = 0.5
    """Fraction alpha of the SFT run whose checkpoint is the reference. Beyond the paper: 0 or `backbone`, the backbone
    itself; several, whose weights are averaged; `ema`, the run's moving average; `validated`, the kept checkpoint that
    finds corrupted tokens best."""

    teacher: PretrainedBackboneConfig | None = None
    """Beyond the paper: another model of the same tokenizer in the place of pi_SFT, which may then be the reference
    (`reference: 1`). The KL stays that to pi_SFT."""

    clip_above: float | None = Field(None, gt=0)
    """Beyond the paper: token rewards above this count as this. Losses are not clipped."""

    normalise: bool = False
    """Beyond the paper: divide by the deviation of the token reward on demonstrations."""

    arithmetic: Literal["auto", "measured", "as_sft"] | Arithmetic = "auto"
    """How the two frozen models compute the reward. `as_sft` as SFT did; `measured` in bfloat16 where its rounding is
    no more than a tenth of the reward's deviation on demonstrations, else in float32; `auto` as SFT did where that was
    float32, and else measured. `tf32` has to be asked for: it is not yet measured on a GPU."""

    probe_demonstrations: int = Field(256, ge=1, le=10**6)
    """Demonstrations that the reward is measured on; those that SFT saw cut or not at all are passed over."""

    execution: ExecutionConfig = ExecutionConfig()
    """How the work is done."""

    @classmethod
    def identity_in(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """What SFT did needs no saying: artifacts from before there was a choice keep their keys."""
        kept = super().identity_in(values)
        if kept.get("arithmetic") in ("auto", AS_SFT):
            del kept["arithmetic"]
        return kept

    def settled(self, sft: Mapping[str, Any]) -> Self:
        """With what `auto` is after an SFT run of these settings, and what is as SFT did called that."""
        computed = (sft.get("backbone") or {}).get("dtype", "float32")
        chosen = self.arithmetic
        if chosen == "auto":
            chosen = AS_SFT if computed == "float32" else MEASURED
        return self.model_copy(update={"arithmetic": AS_SFT if chosen == computed else chosen})

    @field_validator("reference")
    @classmethod
    def _distinct_fractions(cls, reference: float | tuple[float, ...] | str) -> float | tuple[float, ...] | str:
        if isinstance(reference, tuple) and len(set(reference)) < 2:
            raise ValueError("a mean of checkpoints needs at least two different fractions")
        return tuple(sorted(set(reference))) if isinstance(reference, tuple) else reference

    @model_validator(mode="after")
    def _of_two_models(self) -> Self:
        if self.reference == SFT and self.teacher is None:
            raise ValueError(
                "against reference 1, which is pi_SFT itself, the reward is 0 everywhere: it needs reward.teacher"
            )
        if self.teacher is not None and self.teacher.gguf_file is not None:
            raise ValueError("a teacher is read from safetensors: write its GGUF file as a folder with dpr backbone")
        if self.reference == "validated" and self.teacher is not None:
            raise ValueError("reference validated chooses for pi_SFT; with a teacher, name the reference")
        return self

    def fractions(self) -> tuple[float, ...]:
        """The checkpoints that this reference names outright."""
        if isinstance(self.reference, str):
            return ()
        return self.reference if isinstance(self.reference, tuple) else (self.reference,)


class RewardDefinitionConfig(Config):
    """A reward as its artifact holds it: every choice made, every constant measured. It names models and holds none."""

    formula: Formula = "baseline_relative"
    """How the two models' log-probabilities become a token reward."""

    reference: Annotated[tuple[Fraction | Literal["ema"], ...], FromList] = Field(min_length=1)
    """The parts of the SFT run whose weights are averaged to the reference; one part stands for itself."""

    teacher: PretrainedBackboneConfig | None = None
    """The model in the place of pi_SFT, if there is one."""

    scale: float = Field(1.0, gt=0)
    """Token rewards are divided by this."""

    clip_above: float | None = Field(None, gt=0)
    """Token rewards above this, after the division, count as this."""

    seed: int = Field(0, ge=0, lt=2**31)
    """Decides the signs of `random_sign`."""

    candidates: dict[str, float] = Field({})
    """Where the reference was chosen: AUROC of finding corrupted tokens, by candidate."""

    arithmetic: Arithmetic | None = None
    """How its models compute it; none as SFT did."""

    rounding: dict[str, float] = Field({})
    """Where the arithmetic was measured: rounding over the deviation of the reward, by type."""

    @model_serializer(mode="wrap")
    def _without_what_is_as_sft(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """So that rewards computed as SFT did are the same bytes as before there was a choice."""
        left_out = [name for name in ("arithmetic", "rounding", "teacher") if not getattr(self, name)]
        return {name: value for name, value in handler(self).items() if name not in left_out}

    def provenance(self) -> dict[str, str]:
        """What it is made of, for the head of a page."""
        found = {"Formula": self.formula, "Reference": self.describe_reference()}
        return found if self.teacher is None else {**found, "Teacher": self.teacher.name}

    def describe_reference(self) -> str:
        """As a reader would say it."""
        parts = [named(part) for part in self.reference]
        chosen = " (chosen by validation)" if self.candidates else ""
        return (f"mean of {', '.join(parts)}" if len(parts) > 1 else parts[0]) + chosen


def named(part: float | str) -> str:
    """A part of the SFT run as a reader would say it."""
    if part == BACKBONE:
        return "backbone"
    return part if isinstance(part, str) else f"{part:g}"


class DiagnoseConfig(StageConfig):
    """What can be known of a reward before it is trained on."""

    unless_changed: ClassVar[Mapping[str, Any]] = {"stated_results": None}

    prompts: int = Field(40, ge=2, le=10**6)
    """Training prompts that the SFT policy answers several times."""

    samples: int = Field(8, ge=2, le=10_000)
    """Answers to each of them."""

    demonstrations: int = Field(500, ge=2, le=10**6)
    """Demonstrations of which one token is replaced by another."""

    max_response_tokens: int = Field(1024, ge=1, le=2**20)
    """Longer answers are cut."""

    stated_results: bool | None = None
    """Whether answers are checked by the results that the demonstrations have in a column or announce ("The answer is
    5.", "#### 5"). None: as the pipeline says, which does so where they are not the lab's."""

    execution: ExecutionConfig = ExecutionConfig()
    """How the work is done."""
