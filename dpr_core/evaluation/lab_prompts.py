"""Prompts of the lab's task."""

from dpr_core.config.evaluation import LabBenchmarkConfig
from dpr_core.evaluation.questions import Question
from dpr_core.lab import problem, programs


def load(config: LabBenchmarkConfig) -> list[Question]:
    """The same prompts for the same settings, each with its result as reference."""
    problems = programs.draw_problems(config.task, config.split, config.prompts, config.prompt_seed)
    return [Question(id=p.id, turns=(p.prompt,), reference=str(p.result)) for p in problems]


def read_result(text: str) -> str | None:
    """The result that an answer states."""
    return problem.read_result(text)
