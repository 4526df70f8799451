"""Deployed single stages, a Prefect flow each: artifact IDs and a configuration in, an artifact ID out."""

from collections.abc import Mapping

from pydantic import StrictBool

from dpr_core.config.base import StageConfig
from dpr_core.config.data import PromptsConfig, SubsampleConfig
from dpr_core.config.evaluation import AnswerConfig, JudgeConfig, RateConfig, ReportConfig
from dpr_core.config.imitation import ContinuedSFTConfig, SelfPlayConfig
from dpr_core.config.model import LabBackboneConfig
from dpr_core.config.pipeline import ExperimentConfig
from dpr_core.config.reinforce import ReinforceConfig
from dpr_core.config.reward import DiagnoseConfig, RewardConfig
from dpr_core.config.training import SFTConfig
from flows.orchestration import flow
from flows.pipeline import run_graph
from flows.requests import StageRequest


@flow()
def backbone(config: LabBackboneConfig = LabBackboneConfig(), force: StrictBool = False) -> str:
    """Build the lab's tiny backbone."""
    return _run("backbone", config, {}, force)


@flow()
def subsample(config: SubsampleConfig = SubsampleConfig(), force: StrictBool = False) -> str:
    """Draw demonstrations."""
    return _run("subsample", config, {}, force)


@flow()
def prompts(data: str, config: PromptsConfig = PromptsConfig(), force: StrictBool = False) -> str:
    """Draw prompts for REINFORCE beside a subsample artifact."""
    return _run("prompts", config, {"data": data}, force)


@flow()
def sft(data: str, backbone: str | None = None, config: SFTConfig = SFTConfig(), force: StrictBool = False) -> str:
    """Fine-tune on a subsample artifact, from a backbone artifact or from `config.backbone`."""
    return _run("sft", config, {"data": data, **({"backbone": backbone} if backbone else {})}, force)


@flow()
def reward(sft: str, config: RewardConfig = RewardConfig(), force: StrictBool = False) -> str:
    """Recover the dense reward of an SFT artifact."""
    return _run("reward", config, {"sft": sft}, force)


@flow()
def diagnose(reward: str, config: DiagnoseConfig = DiagnoseConfig(), force: StrictBool = False) -> str:
    """Measure a reward artifact before it is trained on."""
    return _run("diagnose", config, {"reward": reward}, force)


@flow()
def reinforce(
    reward: str,
    prompts: str | None = None,
    config: ReinforceConfig = ReinforceConfig(),
    force: StrictBool = False,
) -> str:
    """Improve the SFT policy against a reward artifact, on prompts of their own or on those of the SFT rows."""
    return _run("reinforce", config, {"reward": reward, **({"prompts": prompts} if prompts else {})}, force)


@flow()
def self_play(sft: str, config: SelfPlayConfig = SelfPlayConfig(), force: StrictBool = False) -> str:
    """Improve the policy of an SFT artifact by SPIN or GSIL."""
    return _run("self_play", config, {"sft": sft}, force)


@flow()
def continued_sft(sft: str, config: ContinuedSFTConfig = ContinuedSFTConfig(), force: StrictBool = False) -> str:
    """Fine-tune the policy of an SFT artifact further, on the same demonstrations."""
    return _run("continued_sft", config, {"sft": sft}, force)


@flow()
def answer(policy: str, config: AnswerConfig, force: StrictBool = False) -> str:
    """Let the policy of an artifact answer a benchmark: SFT, a reward, or what was trained from either."""
    return _run("answer", config, {"policy": policy}, force)


@flow()
def judge(candidate: str, baseline: str, config: JudgeConfig = JudgeConfig(), force: StrictBool = False) -> str:
    """Compare two answer artifacts."""
    return _run("judge", config, {"candidate": candidate, "baseline": baseline}, force)


@flow()
def rate(answers: str, config: RateConfig = RateConfig(), force: StrictBool = False) -> str:
    """Rate an answer artifact from 1 to 10."""
    return _run("rate", config, {"answers": answers}, force)


@flow()
def report(judgments: Mapping[str, str], config: ReportConfig = ReportConfig(), force: StrictBool = False) -> str:
    """Tabulate judge artifacts, given as {"policy on benchmark": ID}; rate artifacts have ", rated" after it."""
    return _run("report", config, dict(judgments), force)


@flow()
def experiment(
    reports: Mapping[str, str], config: ExperimentConfig = ExperimentConfig(), force: StrictBool = False
) -> str:
    """Put report artifacts side by side, given as {"point": ID}; `config.points` says what sets each point apart."""
    return _run("experiment", config, dict(reports), force)


def _run(stage: str, config: StageConfig, inputs: dict[str, str], force: bool) -> str:
    settings = config.model_dump(mode="json")
    document = run_graph(StageRequest(stage=stage, config=settings, inputs=inputs, force=force))
    artifact: str = document["stages"][0]["id"]
    return artifact
