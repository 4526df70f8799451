"""Judgments that are made by hand."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from dpr_core.evaluation.pairwise import Game, Verdict
from dpr_core.evaluation.questions import Question
from dpr_core.reporting.judgments import JudgedAnswers, JudgedPrompt, ModelAnswer

VERDICTS = {1.0: (Verdict.FIRST, Verdict.SECOND), 0.5: (Verdict.TIE,) * 2, 0.0: (Verdict.SECOND, Verdict.FIRST)}


def prompt(
    i: int,
    scores: Sequence[float | None],
    tokens: tuple[int, int] = (20, 10),
    turns: tuple[str, ...] = ("Why?",),
    answers: tuple[str, str] = ("Because.", "No idea."),
    words: str = "said",
    details: dict[str, str | int] | None = None,
) -> JudgedPrompt:
    """A question whose game with the candidate first, and then the one with it second, ended with these scores."""
    games = tuple(
        Game(
            f"q{i}",
            order == 0,
            Verdict.UNREADABLE if score is None else VERDICTS[score][order],
            f"{words} {order}",
            details or {},
        )
        for order, score in enumerate(scores)
    )
    ours, theirs = (ModelAnswer((text,) * len(turns), count) for text, count in zip(answers, tokens, strict=True))
    return JudgedPrompt(Question(f"q{i}", turns), ours, theirs, games)


@pytest.fixture
def judged() -> Callable[..., JudgedAnswers]:
    """A judgment by the pairs of scores of its prompts."""

    def make(
        policy: str, scores: Sequence[Sequence[float | None]], benchmark: str = "lab", judge: str = "rule", **more: Any
    ) -> JudgedAnswers:
        prompts = tuple(prompt(i, each, **more) for i, each in enumerate(scores))
        return JudgedAnswers(policy, benchmark, prompts, judge, samples=200)

    return make
