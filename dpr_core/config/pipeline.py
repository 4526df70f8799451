"""The whole pipeline as one document: what a recipe holds."""

from typing import Any, Self

from pydantic import Field, model_validator

from dpr_core.config.base import Config
from dpr_core.config.data import SubsampleConfig
from dpr_core.config.evaluation import AnswerSettings, Evaluation, JudgeConfig, ReportConfig
from dpr_core.config.model import Backbone
from dpr_core.config.training import ReinforceConfig, RewardConfig, SFTConfig


class PipelineConfig(Config):
    """Demonstrations -> SFT with checkpoints -> dense reward -> REINFORCE -> judged answers."""

    name: str = Field("pipeline", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name of the runs in MLflow."""

    description: str = ""
    """One sentence on what this recipe is."""

    seed: int = 0
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
        stages = ("backbone", "subsample", "sft", "reward", "reinforce", "answer", "judge", "report")
        seeded = dict(values)
        for stage in stages:
            section = seeded.get(stage, {})
            takes_seed = stage != "backbone" or (isinstance(section, dict) and section.get("type") == "lab")
            if isinstance(section, dict) and takes_seed:
                seeded[stage] = {"seed": values["seed"], **section}
        return seeded

    @model_validator(mode="after")
    def _reference_is_kept(self) -> Self:
        if self.reward.reference not in self.sft.checkpoints:
            kept = ", ".join(f"{f:g}" for f in self.sft.checkpoints)
            raise ValueError(
                f"reward.reference is {self.reward.reference:g}, but sft.checkpoints keeps only {kept}; "
                f"add it there: --set 'sft.checkpoints=[{self.reward.reference:g}, {kept}]'"
            )
        return self
