"""Settings of a whole pipeline (what a recipe holds), and of an experiment over several."""

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from dpr_core.config.base import Config, FromList, Line, Name, StageConfig, override, parse, type_if_unset
from dpr_core.config.data import ChatTemplateConfig, LabSourceConfig, PromptsConfig, SubsampleConfig
from dpr_core.config.evaluation import (
    RESERVED,
    AnsweringConfig,
    BestOfNConfig,
    Control,
    EvaluationConfig,
    JudgeConfig,
    KeptConfig,
    LabBenchmarkConfig,
    MatchedConfig,
    RateConfig,
    ReportConfig,
    VerifiableJudgeConfig,
)
from dpr_core.config.execution import Device, LaunchConfig
from dpr_core.config.imitation import ContinuedSFTConfig, SelfPlayConfig
from dpr_core.config.model import Backbone, LabBackboneConfig
from dpr_core.config.official import OfficialBenchmarkConfig
from dpr_core.config.placing import STAGE_NAMES, Rules
from dpr_core.config.presets import PRESETS, PresetName, with_preset
from dpr_core.config.reinforce import ReinforceConfig
from dpr_core.config.reward import BACKBONE, NOT_PER_TOKEN, PER_TOKEN, DiagnoseConfig, RewardConfig
from dpr_core.config.training import SFTConfig
from dpr_core.errors import UsageError

STAGES = tuple(name for name in STAGE_NAMES if name not in ("self_play", "continued_sft", "experiment"))
"""Stages with a section of their own: two are methods, and one is an experiment's."""

OPTIONAL = frozenset({"prompts", "rate"})
"""Stages that there are only where their section is set."""

SHARED = ("sft", "reward", "diagnose", "reinforce", "answer")
"""Stages that run networks and that several processes can do together, as all methods can be."""


class VariantConfig(Config):
    """The trained policy again, with other settings of its reward, its REINFORCE or its prompts."""

    type: Literal["variant"] = "variant"
    """Which kind of method this is."""

    preset: PresetName | None = None
    """A method of the family, whose settings these are (docs/paper-index.md)."""

    changes: Annotated[tuple[str, ...], FromList] = Field((), max_length=100)
    """What is different, after the preset, as `--set` takes it: `reinforce.algorithm.gamma=0.95`."""

    @field_validator("changes")
    @classmethod
    def _differs(cls, changes: tuple[str, ...], given: ValidationInfo) -> tuple[str, ...]:
        if not changes and given.data.get("preset", "") is None:
            raise ValueError("without a preset and without changes this is the pipeline's own policy again")
        return changes


Method = Annotated[
    VariantConfig | SelfPlayConfig | ContinuedSFTConfig, Field(discriminator="type"), type_if_unset("variant")
]


class Variant(NamedTuple):
    """What a policy is trained with beyond the SFT model."""

    reward: RewardConfig
    reinforce: ReinforceConfig
    prompts: PromptsConfig | None


class PipelineConfig(Config):
    """Demonstrations -> SFT with checkpoints -> dense reward -> REINFORCE -> judged answers."""

    name: Name = "pipeline"
    """Name of the runs in MLflow."""

    description: str = ""
    """One sentence on what this recipe is."""

    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of every stage that does not set its own."""

    device: Device = "auto"
    """What every stage behind the backbone runs on that does not say it itself: see `execution.device`."""

    launch: LaunchConfig = LaunchConfig()
    """Processes that share the work of every stage that can be shared and does not set its own."""

    place: Rules = Field({})
    """Where stages are done, by name or `*` for the others: here, or a Prefect work pool, or one of its queues as
    pool/queue. It changes nothing about what comes out."""

    backbone: Backbone
    """The network to train."""

    subsample: SubsampleConfig = SubsampleConfig()
    """The demonstrations."""

    prompts: PromptsConfig | None = None
    """The prompts that REINFORCE samples for; none means those of the demonstrations."""

    sft: SFTConfig = SFTConfig()
    """Supervised fine-tuning with its checkpoints."""

    reward: RewardConfig = RewardConfig()
    """The reward recovered from two of them."""

    diagnose: DiagnoseConfig | None = DiagnoseConfig()
    """What is measured of the reward before it is trained on; none leaves that out."""

    reinforce: ReinforceConfig = ReinforceConfig()
    """REINFORCE against that reward."""

    methods: dict[Name, Method] = Field({}, max_length=32)
    """What else is trained from the same SFT model, by name: variants of the method, and other methods."""

    evaluation: EvaluationConfig = EvaluationConfig()
    """What the policies are asked, and what stands beside the trained one."""

    answer: AnsweringConfig = AnsweringConfig()
    """How they answer."""

    judge: JudgeConfig = JudgeConfig()
    """Who compares the answers, and how."""

    rate: RateConfig | None = None
    """Ratings from 1 to 10 of all answers to MT-Bench, those of SFT too; none leaves that out."""

    report: ReportConfig = ReportConfig()
    """The table at the end."""

    @model_validator(mode="before")
    @classmethod
    def _share_seed(cls, values: Any) -> Any:
        if not isinstance(values, dict) or type(values.get("seed")) is not int:
            return values
        seeded = dict(values)
        for stage in STAGES:
            if stage in OPTIONAL and stage not in seeded:
                continue
            section = seeded.get(stage, {})
            takes_seed = stage != "backbone" or (isinstance(section, dict) and section.get("type") == "lab")
            if isinstance(section, dict) and takes_seed:
                seeded[stage] = {"seed": values["seed"], **section}
        methods = seeded.get("methods")
        if isinstance(methods, dict):
            seeded["methods"] = {
                name: {"seed": values["seed"], **method} if _is_stage(method) else method
                for name, method in methods.items()
            }
        return seeded

    @model_validator(mode="before")
    @classmethod
    def _share_launch(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "launch" not in values:
            return values
        try:
            launch = LaunchConfig.model_validate(values["launch"]).model_dump()
        except ValidationError:
            # Reported by the validation of the `launch` section itself.
            return values
        return _in_shared(values, lambda section: _with_launch(section, launch))

    @model_validator(mode="before")
    @classmethod
    def _share_device(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("device"), str):
            return values
        return _in_shared(values, lambda section: _with_device(section, values["device"]))

    @model_validator(mode="before")
    @classmethod
    def _presets_of_self_play(cls, values: Any) -> Any:
        """A preset that is a stage of its own is written out, under what the method says itself. Defined last, this is
        the first of the validators to run."""
        methods = values.get("methods") if isinstance(values, dict) else None
        if not isinstance(methods, dict):
            return values
        return {**values, "methods": {name: _written_out(method) for name, method in methods.items()}}

    @model_serializer(mode="wrap")
    def _factor_out_shared(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """So that changing `seed`, `device` or `launch` in what was written out changes it everywhere."""
        values: dict[str, Any] = handler(self)
        sections = [values[stage] for stage in STAGES if values[stage] is not None]
        for section in [*sections, *values["methods"].values()]:
            if section.get("seed") == self.seed:
                del section["seed"]
            if section.get("execution", {}).get("launch") == values["launch"]:
                del section["execution"]["launch"]
        for section in [*(values[stage] for stage in SHARED), *values["methods"].values()]:
            if section is not None and section.get("execution", {}).get("device") == self.device:
                del section["execution"]["device"]
        return values

    @model_validator(mode="after")
    def _same_lab_task(self) -> Self:
        parts: dict[str, Config] = {"backbone": self.backbone, "subsample.source": self.subsample.source}
        for section in ("benchmarks", "capabilities"):
            asked = getattr(self.evaluation, section)
            parts |= {f"evaluation.{section}.{name}": part for name, part in asked.items()}
        labs = (LabBackboneConfig, LabSourceConfig, LabBenchmarkConfig)
        for name, prompts in {"": self.prompts, **{n: v.prompts for n, v in self.variants().items()}}.items():
            if prompts is not None and prompts.source is not None:
                parts[f"methods.{name}.prompts.source" if name else "prompts.source"] = prompts.source
        tasks = {f"{name}.task": part.task for name, part in parts.items() if isinstance(part, labs)}
        if len(set(tasks.values())) > 1:
            raise ValueError(f"{', '.join(tasks)} must be equal, or prompts kept for evaluation would be trained on")
        return self

    @model_validator(mode="after")
    def _has_a_chat_template(self) -> Self:
        if isinstance(self.backbone, LabBackboneConfig) and isinstance(self.subsample.template, ChatTemplateConfig):
            raise ValueError("the tokenizers of the lab have no chat template; name a pretrained `backbone`, or a text")
        return self

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        names = [*RESERVED, *(name.upper() for name in (*self.methods, *self.evaluation.controls))]
        if twice := sorted(name for name in set(names) if names.count(name) > 1):
            raise ValueError(f"two policies cannot both be called {twice[0]}: the report would not tell them apart")
        if taken := sorted(set(STAGES) & set(self.methods)):
            raise ValueError(f"a method cannot be called {taken[0]}: the pipeline has a stage of that name")
        return self

    @model_validator(mode="after")
    def _verifiable_benchmarks(self) -> Self:
        public = [
            name for name, each in self.evaluation.benchmarks.items() if isinstance(each, OfficialBenchmarkConfig)
        ]
        if public and isinstance(self.judge.by, VerifiableJudgeConfig):
            raise ValueError(
                f"evaluation.benchmarks.{public[0]} has no results that a program can check, which "
                "judge.by.type=verifiable needs; choose another judge, such as judge.by.type=openai"
            )
        return self

    @model_validator(mode="after")
    def _checkpoints_of_references(self) -> Self:
        for reward in [self.reward, *(variant.reward for variant in self.variants().values())]:
            _check_reference(reward, self.sft)
            if BACKBONE in reward.fractions() and getattr(self.backbone, "gguf_file", None):
                raise ValueError(
                    "reward.reference is 0, the backbone, and a reference is read from safetensors: write its GGUF "
                    "file as a folder with dpr backbone"
                )
            if BACKBONE in reward.fractions() and self.sft.imported and self.sft.imported.hides(self.backbone):
                raise ValueError("reward.reference is 0, the backbone, without which SFT was imported: give --backbone")
        return self

    @model_validator(mode="after")
    def _policies_of_controls(self) -> Self:
        runs = {"DPR": self.reinforce, **{name: variant[1] for name, variant in self.variants().items()}}
        for name, control in self.evaluation.controls.items():
            where = f"evaluation.controls.{name}"
            if isinstance(control, KeptConfig):
                _check_kept(control, where, runs)
            elif isinstance(control, MatchedConfig) and control.match is not None:
                _check_match(control.match, where, [*RESERVED, *self.methods], self.evaluation.controls)
        return self

    @model_validator(mode="after")
    def _rewards_over_the_vocabulary(self) -> Self:
        for reward, reinforce, _ in [Variant(self.reward, self.reinforce, self.prompts), *self.variants().values()]:
            if reinforce.over_vocabulary and reward.formula not in PER_TOKEN:
                raise ValueError(NOT_PER_TOKEN.format(reward.formula))
        return self

    def variants(self) -> dict[str, Variant]:
        """Reward, REINFORCE and prompts of every method that is a variant."""
        parts = {"reward": self.reward, "reinforce": self.reinforce, "prompts": self.prompts}
        sections = {name: None if part is None else part.model_dump(mode="json") for name, part in parts.items()}
        made = {}
        for name, method in self.methods.items():
            if isinstance(method, VariantConfig):
                where = f"methods.{name}.changes"
                if outside := [c for c in method.changes if re.split(r"[.=]", c)[0] not in sections]:
                    raise UsageError(
                        f"{where}: {outside[0]}: a variant changes fields of reward, reinforce and prompts"
                    )
                of_preset = sections if method.preset is None else with_preset(sections, method.preset)
                values = override(of_preset, method.changes, where)
                prompts = values["prompts"]
                made[name] = Variant(
                    parse(RewardConfig, values["reward"], f"{where}: reward"),
                    parse(ReinforceConfig, values["reinforce"], f"{where}: reinforce"),
                    None
                    if prompts is None
                    else parse(PromptsConfig, {"seed": self.seed, **prompts}, f"{where}: prompts"),
                )
        return made


def _written_out(method: Any) -> Any:
    preset = method.get("preset") if isinstance(method, dict) else None
    settings = PRESETS[preset].self_play if isinstance(preset, str) and preset in PRESETS else {}
    if not settings:
        return method
    own = {name: value for name, value in method.items() if name != "preset"}
    loss = own.get("method")
    if isinstance(loss, dict) and loss.get("type", kind := settings["method"]["type"]) == kind:
        own["method"] = {**settings["method"], **loss}
    return {**settings, **own}


def _is_stage(method: Any) -> bool:
    """A variant has no settings of its own."""
    return isinstance(method, dict) and method.get("type", "variant") != "variant"


def _in_shared(values: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """The settings of a pipeline with those of every stage that can be shared changed."""
    changed = {**values, **{stage: change(values.get(stage, {})) for stage in SHARED}}
    methods = values.get("methods")
    if isinstance(methods, dict):
        changed["methods"] = {name: change(method) if _is_stage(method) else method for name, method in methods.items()}
    return changed


def _with_device(section: Any, device: str) -> Any:
    """The settings of a stage, with the device that they do not name."""
    execution = section.get("execution", {}) if isinstance(section, dict) else None
    return {**section, "execution": {"device": device, **execution}} if isinstance(execution, dict) else section


def _with_launch(section: Any, launch: dict[str, Any]) -> Any:
    """The settings of a stage, with what they do not say of their launch."""
    if not isinstance(section, dict):
        return section
    execution = section.get("execution", {})
    own = execution.get("launch", {}) if isinstance(execution, dict) else None
    return {**section, "execution": {**execution, "launch": {**launch, **own}}} if isinstance(own, dict) else section


def _check_reference(reward: RewardConfig, sft: SFTConfig) -> None:
    kept = ", ".join(f"{f:g}" for f in sft.checkpoints)
    if missing := [each for each in reward.fractions() if each not in (BACKBONE, *sft.checkpoints)]:
        raise ValueError(
            f"reward.reference is {missing[0]:g}, but sft.checkpoints keeps only {kept} (0 is the backbone); "
            f"add it there: --set 'sft.checkpoints=[{missing[0]:g}, {kept}]'"
        )
    if reward.reference == "ema" and sft.ema_decay is None:
        raise ValueError("reward.reference is ema, but sft.ema_decay is not set; set it: --set sft.ema_decay=0.98")
    if reward.reference == "validated" and len(sft.checkpoints) < 3:
        raise ValueError(f"reward.reference is validated, but sft.checkpoints keeps only {kept}: keep several")


def _check_kept(control: KeptConfig, where: str, runs: dict[str, ReinforceConfig]) -> None:
    if control.of not in runs:
        raise ValueError(
            f"{where}.of is {control.of}, which is no policy of this pipeline that REINFORCE trains; "
            f"there is {', '.join(runs)}"
        )
    values = runs[control.of].keep_at_kl
    if control.kl not in values:
        listed = ", ".join(f"{kl:g}" for kl in sorted({control.kl, *values}))
        own = "" if control.of in RESERVED else f" in methods.{control.of}.changes"
        raise ValueError(
            f"{where}.kl is {control.kl:g}, at which {control.of} keeps no policy; "
            f"add it: reinforce.keep_at_kl=[{listed}]{own}"
        )


def _check_match(target: str, where: str, trained: list[str], controls: dict[str, Control]) -> None:
    known = sorted({*trained, *controls} - {"SFT"})
    if target not in known:
        raise ValueError(f"{where}.match is {target}, but there is no policy of that name; there is {', '.join(known)}")
    other = controls.get(target)
    if isinstance(other, BestOfNConfig):
        raise ValueError(f"{where}.match is {target}, a choice among samples, which has neither an entropy nor a KL")
    if isinstance(other, MatchedConfig) and other.match is not None:
        raise ValueError(
            f"{where}.match is {target}, which is itself matched; name what that is matched to: {other.match}"
            if where.rpartition(".")[2] != other.match
            else f"{where}.match is {target}, whose own match is this one, so that neither could be found first"
        )


ExhibitName = Literal["sweep", "table1", "table2", "figure1", "figure2", "figure3", "figure4a", "figure4b"]


class ExperimentConfig(StageConfig):
    """The tables, the plots and the verdicts of an experiment."""

    title: Line = "Sweep"
    """Heading of the results."""

    exhibit: ExhibitName = "sweep"
    """Table or figure of the paper whose claims are judged; a sweep shows what was measured and claims nothing."""

    points: dict[str, dict[str, Any]] = Field({}, max_length=10_000)
    """The pipelines by name, each with the fields that set it apart, its seed among them."""
