"""What a configuration refers to but does not hold is part of identity: an edited file is another input."""

import json
from dataclasses import replace
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
    RateConfig,
)
from dpr_core.config.model import PretrainedBackboneConfig
from dpr_core.config.training import SFTConfig
from dpr_core.errors import DensePathError, UsageError
from dpr_core.evaluation import prompts
from dpr_core.hashing import hash_file
from tasks.artifacts.store import Store
from tasks.registry import stage_named
from tasks.run_stage import run_stage
from tasks.stages import subsample


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


def test_a_source_that_grows_between_its_hash_and_its_reading_makes_no_artifact(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"

    def append(count: int) -> None:
        with file.open("a") as lines:
            lines.writelines(json.dumps({"question": "q", "response": "r"}) + "\n" for _ in range(count))

    def pin_then_append(config: SubsampleConfig) -> SubsampleConfig:
        pinned: SubsampleConfig = subsample.STAGE.pin(config)
        append(1)
        return pinned

    append(20)
    config = SubsampleConfig(source=FileSourceConfig(path=str(file)))
    with pytest.raises(DensePathError, match=r"rows\.jsonl changed after its hash was noted"):
        run_stage(replace(subsample.STAGE, pin=pin_then_append), config, {}, store=store)
    assert not any(record.finished for record in store.records("subsample"))
    made = run_stage(subsample.STAGE, config, {}, store=store)
    assert made.metrics["data/rows_read"] == 21
    assert store.manifest(made.id).config["source"]["content"] == hash_file(file)
    again = run_stage(subsample.STAGE, config, {}, store=store)
    assert (again.status, again.id) == ("reused", made.id)


def test_what_is_looked_at_before_a_run_is_pinned_afresh(tmp_path: Path) -> None:
    """A stored config that is run again still has the pin of then."""
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}')
    stored = stage_named("answer").pin(AnswerConfig(benchmark=FileBenchmarkConfig(path=str(file))))
    file.write_text('{"prompt": "b"}')
    stage_named("answer").preflight([stored])
    instructions = tmp_path / "judge_prompts.jsonl"
    instructions.write_text("")
    with pytest.raises(UsageError, match="holds no rows"):
        stage_named("rate").preflight([RateConfig(prompts=str(instructions), prompts_content="0" * 64)])
