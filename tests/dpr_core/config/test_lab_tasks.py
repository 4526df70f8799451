import pytest

from dpr_core.config.base import parse
from dpr_core.config.data import AdditionsConfig, LabSourceConfig, ShellGameConfig
from dpr_core.config.evaluation import LabBenchmarkConfig
from dpr_core.config.model import LabBackboneConfig
from dpr_core.config.pipeline import PipelineConfig
from dpr_core.errors import UsageError


@pytest.mark.parametrize("part", [LabSourceConfig, LabBackboneConfig, LabBenchmarkConfig])
def test_a_task_that_does_not_say_its_type_is_of_additions(
    part: type[LabSourceConfig | LabBackboneConfig | LabBenchmarkConfig],
) -> None:
    assert part().task == AdditionsConfig()
    assert parse(part, {"task": {"operations": 3}}, "x").task == AdditionsConfig(operations=3)
    assert parse(part, {"task": {"type": "shell_game", "cups": 3}}, "x").task == ShellGameConfig(cups=3)
    with pytest.raises(UsageError, match=r"x: task.swaps: no such field"):
        parse(part, {"task": {"swaps": 3}}, "x")
    with pytest.raises(UsageError, match=r"x: task.type: unknown type 'chess'; known: 'additions', 'shell_game'"):
        parse(part, {"task": {"type": "chess"}}, "x")


def test_the_two_tasks_cannot_be_mixed_in_a_pipeline() -> None:
    game = {"task": {"type": "shell_game"}}
    values = {"backbone": {"type": "lab", **game}, "subsample": {"source": {"type": "lab", **game}}}
    assert parse(PipelineConfig, values, "x").subsample.source == LabSourceConfig(task=ShellGameConfig())
    benchmarks = {"evaluation": {"benchmarks": {"lab": {"type": "lab"}}}}
    with pytest.raises(
        UsageError, match="backbone.task, subsample.source.task, evaluation.benchmarks.lab.task must be"
    ):
        parse(PipelineConfig, values | benchmarks, "x")


def test_a_task_says_in_words_what_is_to_be_done() -> None:
    assert AdditionsConfig(operations=6, modulus=7).summary == "chains of 6 additions modulo 7"
    assert ShellGameConfig(cups=3, swaps=4).summary == "shell games of 4 swaps of 3 cups"
