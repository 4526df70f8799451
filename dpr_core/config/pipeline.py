"""The whole pipeline as one document: what a recipe holds."""

from typing import Any, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from dpr_core.config.base import Config, Name
from dpr_core.config.data import LabSource, SubsampleConfig
from dpr_core.config.evaluation import AnswerSettings, Evaluation, JudgeConfig, LabBenchmark, ReportConfig
from dpr_core.config.model import Backbone, LabBackbone
from dpr_core.config.training import ReinforceConfig, RewardConfig, SFTConfig

STAGES = ("backbone", "subsample", "sft", "reward", "reinforce", "answer", "judge", "report")


class PipelineConfig(Config):
    """Demonstrations -> SFT with checkpoints -> dense reward -> REINFORCE -> judged answers."""

    name: Name = "pipeline"
    """Name of the runs in MLflow."""

    description: str = ""
    """One sentence on what this recipe is."""

    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of every stage that does not set its own."""

    backbone: Backbone
    """The network to train."""

    subsample: SubsampleConfig = SubsampleConfig()
    """The demonstrations."""

    sft: SFTConfig = SFTConfig()
    """Supervised fine-tuning with its checkpoints."""

    reward: RewardConfig = RewardConfig()
    """The reward recovered from two of them."""

    reinforce: ReinforceConfig = ReinforceConfig()
    """REINFORCE against that reward."""

    evaluation: Evaluation = Evaluation()
    """What the policies are asked, and what stands beside the trained one."""

    answer: AnswerSettings = AnswerSettings()
    """How they answer."""

    judge: JudgeConfig = JudgeConfig()
    """Who compares the answers, and how."""

    report: ReportConfig = ReportConfig()
    """The table at the end."""

    @model_validator(mode="before")
    @classmethod
    def _one_seed_for_all(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("seed"), int):
            return values
        seeded = dict(values)
        for stage in STAGES:
            section = seeded.get(stage, {})
            takes_seed = stage != "backbone" or (isinstance(section, dict) and section.get("type") == "lab")
            if isinstance(section, dict) and takes_seed:
                seeded[stage] = {"seed": values["seed"], **section}
        return seeded

    @model_serializer(mode="wrap")
    def _say_a_common_seed_once(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """So that changing `seed` in what was written out changes it everywhere."""
        values: dict[str, Any] = handler(self)
        for stage in STAGES:
            if values[stage].get("seed") == self.seed:
                del values[stage]["seed"]
        return values

    @model_validator(mode="after")
    def _one_lab_task(self) -> Self:
        parts: dict[str, Config] = {"backbone": self.backbone, "subsample.source": self.subsample.source}
        parts |= {f"evaluation.benchmarks.{name}": part for name, part in self.evaluation.benchmarks.items()}
        labs = (LabBackbone, LabSource, LabBenchmark)
        tasks = {f"{name}.task": part.task for name, part in parts.items() if isinstance(part, labs)}
        if len(set(tasks.values())) > 1:
            raise ValueError(f"{', '.join(tasks)} must be equal, or prompts kept for evaluation would be trained on")
        return self

    @model_validator(mode="after")
    def _reference_is_kept(self) -> Self:
        if self.reward.reference not in self.sft.checkpoints:
            kept = ", ".join(f"{f:g}" for f in self.sft.checkpoints)
            raise ValueError(
                f"reward.reference is {self.reward.reference:g}, but sft.checkpoints keeps only {kept}; "
                f"add it there: --set 'sft.checkpoints=[{self.reward.reference:g}, {kept}]'"
            )
        return self
