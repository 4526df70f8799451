import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dpr_core.config.evaluation import JudgeExecutionConfig, ScriptedJudgeConfig
from dpr_core.errors import DensePathError
from dpr_core.evaluation.ask import CachedJudge
from dpr_core.evaluation.cache import VerdictCache
from dpr_core.evaluation.canaries import CONSTANT, canary_pairs, try_judge, warnings
from dpr_core.evaluation.judge import build_judge
from dpr_core.evaluation.pairwise import Answer, Comparison, Judgment, Pair, PairwiseJudge, Verdict
from dpr_core.evaluation.prompts import PairwisePrompt
from dpr_core.evaluation.questions import Question

PROMPT = PairwisePrompt(100_000)

PAIRS = [
    Pair(Question("empty", ("Why?",)), Answer.of("x"), Answer.of(" ")),
    Pair(Question("a", ("Why?",)), Answer.of("x"), Answer.of("A real answer." * 20)),
    Pair(Question("b", ("One?", "Two?")), Answer(("x", "y")), Answer(("Real." * 40, "More." * 40))),
    Pair(Question("c", ("How?",)), Answer.of("x"), Answer.of("Real.")),
]


class Judging:
    """Decides by a function of the two answers, and counts what it was asked."""

    def __init__(self, decide: Callable[[Answer, Answer], Verdict]) -> None:
        self._decide = decide
        self.asked: list[Comparison] = []

    async def prepare(self, comparisons: Sequence[Comparison]) -> None:
        pass

    async def judge(self, comparison: Comparison) -> Judgment:
        self.asked.append(comparison)
        await asyncio.sleep(0)
        return Judgment(self._decide(comparison.first, comparison.second), "")

    def status(self) -> str:
        return ""

    async def close(self) -> None:
        pass


def metrics(between_equals: float | None, constant: float | None, unreadable: float) -> dict[str, float]:
    named = {
        "judge/canary_self": between_equals,
        "judge/canary_constant": constant,
        "judge/canary_unreadable": unreadable,
    }
    return {name: value for name, value in named.items() if value is not None}


def scripted(rule: Any) -> PairwiseJudge:
    return build_judge(ScriptedJudgeConfig(rule=rule), JudgeExecutionConfig(), lambda question, text: None)


def tried(judge: PairwiseJudge, **execution: Any) -> dict[str, float]:
    return asyncio.run(try_judge(judge, PAIRS, JudgeExecutionConfig(**{"canaries": 2, **execution})))


def test_the_pairs_are_the_first_questions_with_a_real_answer() -> None:
    same, constant = canary_pairs(PAIRS, 2)
    assert [pair.question.id for pair in same] == ["a", "b"]
    assert all(pair.candidate == pair.baseline for pair in same)
    assert [pair.candidate.turns for pair in constant] == [(CONSTANT,), (CONSTANT, CONSTANT)]
    assert [pair.baseline for pair in constant] == [PAIRS[1].baseline, PAIRS[2].baseline]


@pytest.mark.parametrize(
    ("rule", "between_equals", "constant", "words"),
    [
        ("longer", 0.5, 0.0, []),
        ("tie", 0.5, 0.5, ["fooled by an answer that says nothing: it won 50%"]),
        ("shorter", 0.5, 1.0, ["fooled by an answer that says nothing: it won 100%"]),
        ("first", 1.0, 0.5, ["favours the first place: between two equal answers the first won 100%"]),
    ],
)
def test_what_judges_make_of_them(
    rule: str, between_equals: float | None, constant: float | None, words: list[str]
) -> None:
    found = tried(scripted(rule))
    assert found == metrics(between_equals, constant, unreadable=0.0)
    said = warnings(found)
    assert len(said) == len(words)
    assert all(word in line for word, line in zip(words, said, strict=True))


def test_a_judge_that_always_chooses_the_second_of_two_equal_answers() -> None:
    found = tried(Judging(lambda a, b: Verdict.SECOND if a == b else Verdict.TIE))
    assert found["judge/canary_self"] == 0.0
    assert "favours the second place" in warnings(found)[0]
    # Of more than the place alone would give, it is accused as well.
    assert len(warnings({**found, "judge/canary_constant": 0.75})) == 2


def test_of_a_judge_that_cannot_be_read_at_all_nothing_more_is_asked() -> None:
    judge = Judging(lambda a, b: Verdict.UNREADABLE)
    with pytest.raises(DensePathError, match="none of the 8 verdicts on the canaries could be read.*wrote.*''"):
        tried(judge)
    found = tried(judge, max_unreadable_share=1.0)
    assert found == metrics(None, None, unreadable=1.0)
    assert warnings(found) == ["The judge does not keep to its form: 100% of its verdicts could not be read."]


def test_replies_that_end_it_are_kept_and_asked_for_once() -> None:
    kept: list[dict[str, Any]] = []

    def keep(rows: list[dict[str, Any]]) -> str:
        kept.extend(rows)
        return "they are here"

    judge = Judging(lambda a, b: Verdict.UNREADABLE)
    execution = JudgeExecutionConfig(canaries=2, unreadable_retries=5)
    with pytest.raises(DensePathError, match="they are here"):
        asyncio.run(try_judge(judge, PAIRS, execution, keep=keep))
    assert [(row["question_id"], row["verdict"]) for row in kept] == [(i, "unreadable") for i in "aabbaabb"]
    assert len(judge.asked) == 8


def test_a_judge_that_can_be_read_half_of_the_time() -> None:
    found = tried(Judging(lambda a, b: Verdict.UNREADABLE if a == b else Verdict.SECOND))
    assert found == metrics(None, 0.5, unreadable=0.5)
    assert warnings(found)[-1].endswith("50% of its verdicts could not be read.")


def test_without_a_real_answer_there_are_no_canaries() -> None:
    judge = Judging(lambda a, b: Verdict.TIE)
    assert asyncio.run(try_judge(judge, PAIRS[:1], JudgeExecutionConfig())) == {}
    assert judge.asked == []


def test_nothing_is_said_without_canaries() -> None:
    assert warnings({"judge/win_rate": 50.0}) == []
    assert warnings({"judge/canary_self": 0.75, "judge/canary_constant": 0.49}) == []


def test_with_the_cache_they_are_asked_once(tmp_path: Path) -> None:
    judge = Judging(lambda a, b: Verdict.TIE)
    execution = JudgeExecutionConfig(canaries=2)
    for _ in range(2):
        cached = CachedJudge(judge, VerdictCache(tmp_path / "v.sqlite"), "me", PROMPT.judgment)
        asyncio.run(try_judge(cached, PAIRS, execution))
    # Both orders of an answer against itself are one question.
    assert len(judge.asked) == 2 + 4
