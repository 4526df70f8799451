"""One comparison and ways to have it judged by a real client, for several test files."""

import asyncio
import traceback
from typing import Any

import pytest

from dpr_core.config import evaluation as settings
from dpr_core.errors import DensePathError
from dpr_core.evaluation.judge import build_judge
from dpr_core.evaluation.pairwise import Answer, Comparison, Judgment, PairwiseJudge
from dpr_core.evaluation.questions import Question
from tests.loopback import KEY

COMPARISON = Comparison(Question(id="q", turns=("Why?",)), Answer.of("because"), Answer.of("VERDICT: A"))


def build(url: str | None, retries: int = 0, **fields: Any) -> PairwiseJudge:
    config = settings.OpenAIJudgeConfig(model="judge", base_url=url, max_tokens=64, **{"verdicts": "text", **fields})
    return build_judge(config, settings.JudgeExecutionConfig(retries=retries), lambda question, text: None)


def ask(judge: PairwiseJudge, comparison: Comparison = COMPARISON) -> Judgment:
    async def once() -> Judgment:
        try:
            return await judge.judge(comparison)
        finally:
            await judge.close()

    return asyncio.run(once())


def failure(judge: PairwiseJudge) -> str:
    """The message of the failure, once it is sure that no part of the exception shows the key."""
    with pytest.raises(DensePathError) as caught:
        ask(judge)
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert KEY not in shown
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None
    return str(caught.value)
