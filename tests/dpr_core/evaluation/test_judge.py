import asyncio
import dataclasses
from pathlib import Path

import pytest

from dpr_core.config import evaluation as settings
from dpr_core.errors import DensePathError, UsageError
from dpr_core.evaluation.judge import build_judge, identity, judge_with_content_hash, judged_by, judged_by_warnings
from dpr_core.evaluation.pairwise import Answer, Comparison, PairwiseJudge, Verdict
from dpr_core.evaluation.prompts import PAIRWISE_DIGEST
from dpr_core.evaluation.questions import Question, exact_match
from tests.dpr_core.evaluation.asking import ask, build, failure
from tests.dpr_core.evaluation.batch.batching import build as batched
from tests.dpr_core.evaluation.batch.batching import play
from tests.loopback import Loopback, completion
from tests.loopback_batches import Batches, Outcome, Request

EXECUTION = settings.JudgeExecutionConfig()


def read_result(text: str) -> str | None:
    return text.split("=")[1] if "=" in text else None


def verdict(judge: PairwiseJudge, first: str, second: str, reference: str | None = "4") -> Verdict:
    question = Question(id="q", turns=("2+2",), reference=reference)
    return asyncio.run(judge.judge(Comparison(question, Answer.of(first), Answer.of(second)))).verdict


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("=4", "=5", Verdict.FIRST),
        ("none", "=4", Verdict.SECOND),
        ("=4", "long way =4", Verdict.TIE),
        ("=5", "none", Verdict.TIE),
    ],
)
def test_the_right_result_wins(first: str, second: str, expected: Verdict) -> None:
    judge = build_judge(settings.VerifiableJudgeConfig(), EXECUTION, exact_match(read_result))
    assert verdict(judge, first, second) is expected


def test_of_several_turns_the_last_is_verified() -> None:
    judge = build_judge(settings.VerifiableJudgeConfig(), EXECUTION, exact_match(read_result))
    question = Question(id="q", turns=("1+1", "2+2"), reference="4")
    comparison = Comparison(question, first=Answer(("=4", "=3")), second=Answer(("=3", "=4")))
    assert asyncio.run(judge.judge(comparison)).verdict is Verdict.SECOND


def test_a_question_without_reference_cannot_be_verified() -> None:
    judge = build_judge(settings.VerifiableJudgeConfig(), EXECUTION, exact_match(read_result))
    with pytest.raises(UsageError, match="question q has no reference"):
        verdict(judge, "=4", "=5", reference=None)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("longer", (Verdict.SECOND, Verdict.FIRST, Verdict.TIE)),
        ("shorter", (Verdict.FIRST, Verdict.SECOND, Verdict.TIE)),
        ("first", (Verdict.FIRST,) * 3),
        ("tie", (Verdict.TIE,) * 3),
        ("unreadable", (Verdict.UNREADABLE,) * 3),
    ],
)
def test_scripted_rules(rule: str, expected: tuple[Verdict, ...]) -> None:
    judge = build_judge(
        settings.ScriptedJudgeConfig.model_validate({"rule": rule}), EXECUTION, exact_match(read_result)
    )
    seen = tuple(verdict(judge, first, second) for first, second in [("a", "bb"), ("aa", "b"), ("a", "b")])
    assert seen == expected


def test_models_and_versions_are_counted_beside_the_settings() -> None:
    by = judge_with_content_hash(settings.OpenAIJudgeConfig(temperature=0.5))
    replies = [
        {"model": "gpt-4o-b", "system_fingerprint": "fp_2"},
        {"model": "gpt-4o-a", "system_fingerprint": "fp_1"},
        {"model": "gpt-4o-a", "system_fingerprint": "fp_2", "prompt_tokens": 7},
        {"model": "gpt-4o-a"},
        {},
    ]
    found = judged_by(by, replies)
    assert found["models"] == {"gpt-4o-a": 3, "gpt-4o-b": 1}
    assert found["system_fingerprints"] == {"fp_1": 1, "fp_2": 2}
    assert (found["type"], found["model"], found["temperature"]) == ("openai", "gpt-4o-2024-08-06", 0.5)
    assert found["template"] == PAIRWISE_DIGEST
    assert judged_by_warnings(found) == [
        "Several models have judged: gpt-4o-a (3 replies), gpt-4o-b (1 replies).",
        "Several system fingerprints have judged: fp_1 (1 replies), fp_2 (2 replies).",
    ]


def test_one_version_or_a_judge_without_any_is_nothing_to_complain_of() -> None:
    assert (
        judged_by_warnings(judged_by(settings.OpenAIJudgeConfig(), [{"model": "m", "system_fingerprint": "fp_1"}] * 2))
        == []
    )
    found = judged_by(settings.VerifiableJudgeConfig(), [{}])
    assert found == {"type": "verifiable", "models": {}, "system_fingerprints": {}}
    assert judged_by_warnings(found) == []


def test_a_verdict_of_another_version_than_may_judge_is_refused(loopback: Loopback) -> None:
    loopback.answer = lambda call: completion("VERDICT: A")
    assert ask(build(loopback.url, system_fingerprint="fp_1")).verdict is Verdict.FIRST
    message = failure(build(loopback.url, system_fingerprint="fp_0"))
    assert "answers as fp_1, not as judge.by.system_fingerprint=fp_0" in message
    assert len(loopback.calls) == 2

    def nameless(call: object) -> object:
        said = completion("VERDICT: A")
        return dataclasses.replace(said, body={**said.body, "system_fingerprint": None})

    loopback.answer = nameless
    assert "answers as a version without a name" in failure(build(loopback.url, system_fingerprint="fp_1"))
    assert ask(build(loopback.url)).verdict is Verdict.FIRST


def test_of_a_batch_all_but_the_other_versions_verdicts_are_kept(batches: Batches, tmp_path: Path) -> None:
    def one_is_other(requests: list[Request]) -> Outcome:
        lines = [batches.answered(request) for request in requests]
        return Outcome([lines[0].replace("fp_1", "fp_0"), *lines[1:]], [])

    batches.outcomes = [one_is_other]
    by = {"system_fingerprint": "fp_1"}
    with pytest.raises(DensePathError, match="answers as fp_0, not as judge.by.system_fingerprint=fp_1"):
        play(batched(batches, tmp_path / "verdicts.sqlite", by))
    assert len(play(batched(batches, tmp_path / "verdicts.sqlite", by))) == 12
    assert len(batches.requests(1)) == 1


def test_the_version_is_part_of_what_a_kept_verdict_depends_on() -> None:
    one, other = (identity(settings.OpenAIJudgeConfig(system_fingerprint=name)) for name in ("fp_1", "fp_2"))
    assert one != other != identity(settings.OpenAIJudgeConfig())
