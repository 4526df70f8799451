"""What a configuration refers to but does not hold is part of identity: an edited file is another input."""

from pathlib import Path

import pytest

from dpr_core.config.base import StageConfig
from dpr_core.config.data import FileSourceConfig, LabSourceConfig, SubsampleConfig
from dpr_core.config.evaluation import (
    AnswerConfig,
    FileBenchmarkConfig,
    JudgeConfig,
    LabBenchmarkConfig,
    OpenAIJudgeConfig,
)
from dpr_core.config.model import PretrainedBackboneConfig
from dpr_core.config.training import SFTConfig
from dpr_core.evaluation import prompts
from tasks.registry import stage_named


def _identity(stage: str, config: StageConfig) -> dict[str, object]:
    return stage_named(stage).pin(config).identity()


@pytest.mark.parametrize("stage", ["subsample", "answer", "sft"])
def test_an_edited_file_is_another_input(tmp_path: Path, stage: str) -> None:
    file = tmp_path / "data.jsonl"
    config: StageConfig = {
        "subsample": SubsampleConfig(source=FileSourceConfig(path=str(file))),
        "answer": AnswerConfig(benchmark=FileBenchmarkConfig(path=str(file))),
        "sft": SFTConfig(backbone=PretrainedBackboneConfig(name=str(tmp_path))),
    }[stage]
    file.write_text('{"prompt": "a"}')
    before = _identity(stage, config)
    assert before != config.identity()
    assert _identity(stage, config) == before
    file.write_text('{"prompt": "b"}')
    assert _identity(stage, config) != before
    # A stored config that was pinned to the old content is pinned afresh.
    assert _identity(stage, stage_named(stage).pin(config)) == _identity(stage, config)


@pytest.mark.parametrize(
    ("stage", "config"),
    [
        ("subsample", SubsampleConfig(source=LabSourceConfig())),
        ("answer", AnswerConfig(benchmark=LabBenchmarkConfig())),
        ("sft", SFTConfig()),
        ("sft", SFTConfig(backbone=PretrainedBackboneConfig(name="some/hub-id", revision="abc"))),
    ],
)
def test_what_a_config_says_in_full_is_left_as_it_is(stage: str, config: StageConfig) -> None:
    assert stage_named(stage).pin(config) == config


def test_other_instructions_are_another_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    config = JudgeConfig(by=OpenAIJudgeConfig())
    before = _identity("judge", config)
    monkeypatch.setattr("dpr_core.evaluation.judge.PAIRWISE_DIGEST", "0" * 64)
    assert prompts.PAIRWISE_DIGEST in str(before)
    assert _identity("judge", config) != before
