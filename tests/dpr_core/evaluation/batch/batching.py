"""Pairs, and how they are judged in batches, for several test files."""

import asyncio
from pathlib import Path
from typing import Any

from dpr_core.config import evaluation as settings
from dpr_core.evaluation.judge import build_judge
from dpr_core.evaluation.pairwise import Answer, Game, Pair, PairwiseJudge, judge_pairs
from dpr_core.evaluation.questions import Question
from tests.loopback_batches import Batches, Request

PAIRS = [Pair(Question(id=str(i), turns=(f"{i}?",)), Answer.of("x" * i), Answer.of("y" * 3)) for i in range(6)]
EXPECTED = {i: "lost" if i < 3 else "won" if i > 3 else "even" for i in range(6)}


def build(
    batches: Batches, cache: Path | None = None, by: dict[str, Any] | None = None, **execution: Any
) -> PairwiseJudge:
    config = settings.OpenAIBatchJudgeConfig(**{"model": "gpt-4o", "base_url": batches.server.url, **(by or {})})
    return build_judge(config, settled(**execution), lambda question, text: None, cache)


def settled(**execution: Any) -> settings.JudgeExecutionConfig:
    return settings.JudgeExecutionConfig(**{"retries": 0, "rounds": 1, "batch_poll_seconds": 0.01, **execution})


def play(judge: PairwiseJudge, pairs: list[Pair] = PAIRS, notes: list[str] | None = None) -> list[Game]:
    def note(done: int, total: int, text: str) -> None:
        if notes is not None:
            notes.append(text)

    # Whatever a judge of batches cannot answer now it cannot answer in a moment either.
    return list(asyncio.run(judge_pairs(judge, pairs, settings.JudgeExecutionConfig(rounds=0), note)))


def outcomes(games: list[Game]) -> dict[int, str]:
    """What came of each question, once it is sure that both of its orders say the same."""
    found: dict[int, set[float | None]] = {}
    for game in games:
        found.setdefault(int(game.question_id), set()).add(game.score)
    assert len(games) == 2 * len(found)
    words = {1.0: "won", 0.0: "lost", 0.5: "even", None: "unreadable"}
    return {i: words[scores.pop()] for i, scores in found.items() if len(scores) == 1}


def ids(requests: list[Request]) -> set[str]:
    return {request["custom_id"] for request in requests}
