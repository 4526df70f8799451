from dataclasses import replace
from datetime import UTC, datetime

from dpr_core.config.evaluation import AnswerConfig, ExtrapolatedConfig, LabBenchmarkConfig
from tasks.artifacts.run_records import Record
from tasks.running.explain_rerun import NEVER, RequestedStage, differences

SFT = AnswerConfig(benchmark=LabBenchmarkConfig())
CONTROL = SFT.model_copy(update={"policy": ExtrapolatedConfig(k=2)})


def _record(name: str, config: AnswerConfig, **changes: object) -> Record:
    record = Record(
        id=name.ljust(32, "0"), stage="answer", name=name, status="FINISHED", key="k", digest=f"digest of {name}",
        inputs={}, config=config.model_dump(mode="json"), started=datetime(2026, 1, 1, tzinfo=UTC), seconds=1.0,
        parent=None, version=1,
    )  # fmt: skip
    return replace(record, **changes)


def _wanted(name: str, config: AnswerConfig) -> RequestedStage:
    return RequestedStage(name, "answer", 1, config, {}, frozenset())


def test_a_stage_is_compared_with_earlier_ones_of_its_own_name() -> None:
    assert differences(_wanted("control answers", CONTROL), [], {}) == [NEVER]
    killed = _record("control answers", CONTROL, status="KILLED", digest=None)
    assert differences(_wanted("control answers", CONTROL), [killed], {})[0].startswith("never finished")
    stronger = CONTROL.model_copy(update={"policy": ExtrapolatedConfig(k=3)})
    earlier = _record("control answers", CONTROL)
    assert differences(_wanted("control answers", stronger), [earlier], {}) == ["policy.k: 2.0 -> 3.0"]


def test_a_rerun_is_compared_with_what_it_makes_again_whatever_its_name() -> None:
    sft = _record("sft answers", SFT)
    warmer = SFT.model_copy(update={"temperature": 0.9})
    assert differences(_wanted("another name", warmer), [sft], {}, origin=sft.id) == ["temperature: 0.7 -> 0.9"]
