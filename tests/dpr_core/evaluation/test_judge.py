import asyncio

import pytest

from dpr_core.config import evaluation as settings
from dpr_core.errors import UsageError
from dpr_core.evaluation.judge import build_judge
from dpr_core.evaluation.pairwise import Answer, Comparison, PairwiseJudge, Verdict
from dpr_core.evaluation.questions import Question

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
    judge = build_judge(settings.VerifiableJudgeConfig(), EXECUTION, read_result)
    assert verdict(judge, first, second) is expected


def test_of_several_turns_the_last_is_verified() -> None:
    judge = build_judge(settings.VerifiableJudgeConfig(), EXECUTION, read_result)
    question = Question(id="q", turns=("1+1", "2+2"), reference="4")
    comparison = Comparison(question, first=Answer(("=4", "=3")), second=Answer(("=3", "=4")))
    assert asyncio.run(judge.judge(comparison)).verdict is Verdict.SECOND


def test_a_question_without_reference_cannot_be_verified() -> None:
    judge = build_judge(settings.VerifiableJudgeConfig(), EXECUTION, read_result)
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
    judge = build_judge(settings.ScriptedJudgeConfig.model_validate({"rule": rule}), EXECUTION, read_result)
    seen = tuple(verdict(judge, first, second) for first, second in [("a", "bb"), ("aa", "b"), ("a", "b")])
    assert seen == expected
