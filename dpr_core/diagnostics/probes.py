"""The prompts that a reward is tried on, with their results where a program knows them."""

from collections.abc import Sequence

from dpr_core.config.data import LabSourceConfig, SourceConfig
from dpr_core.config.evaluation import LabBenchmarkConfig
from dpr_core.evaluation import benchmarks
from dpr_core.evaluation.questions import Question, ReadResult
from dpr_core.models.token_rewards import GivenText


def training_questions(
    source: SourceConfig, texts: Sequence[GivenText], count: int, seed: int
) -> tuple[list[Question], ReadResult | None]:
    """Training prompts of the lab, whose answers can be read and checked; else the first demonstrated prompts."""
    if isinstance(source, LabSourceConfig):
        benchmark = LabBenchmarkConfig(task=source.task, split="train", prompts=count, prompt_seed=seed)
        return benchmarks.load(benchmark), benchmarks.result_reader(benchmark)
    return [Question(str(i), (text.prompt,), text.system) for i, text in enumerate(texts[:count], start=1)], None
