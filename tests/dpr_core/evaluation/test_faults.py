"""Two thousand judgments through the real client, against a server of which almost every third reply is a fault."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from dpr_core.config import evaluation as settings
from dpr_core.evaluation import ask as core
from dpr_core.evaluation import endpoint
from dpr_core.evaluation.judge import build_judge
from dpr_core.evaluation.pairwise import Answer, Game, Pair, Verdict, judge_pairs, summarise
from dpr_core.evaluation.questions import Question
from tests.loopback import JUDGES, PASSING, UNREADABLE, Faults, Loopback, completion
from tests.loopback import judging as deciding

pytestmark = pytest.mark.integration

PROMPTS = 1000
SHARE_OF_FAULTS = 0.3
BY_HASH = deciding(JUDGES["hash"])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(endpoint, "LONGEST_PAUSE", 0.1)
    monkeypatch.setattr(core, "MOST_SECONDS_BETWEEN_ROUNDS", 0.1)


def judged(
    server: Loopback,
    cache: Path,
    prompts: int,
    unreadable_retries: int,
    verdicts: str = "schema",
    request_seconds: float = 60.0,
) -> tuple[list[Game], str]:
    """The games, and what the judge says of its work at the end."""
    config = settings.OpenAIJudgeConfig(model="m", base_url=server.url, verdicts=verdicts)
    execution = settings.JudgeExecutionConfig(
        retries=2,
        rounds=20,
        unreadable_retries=unreadable_retries,
        concurrency=64,
        request_seconds=request_seconds,
    )
    judge = build_judge(config, execution, lambda question, text: None, cache)
    pairs = [
        Pair(Question(id=str(i), turns=("?",)), Answer.of(f"mine {i}"), Answer.of(f"theirs {i}"))
        for i in range(prompts)
    ]
    games = list(asyncio.run(judge_pairs(judge, pairs, execution, lambda *progress: None)))
    return games, judge.status()


@pytest.mark.parametrize("verdicts", [pytest.param("schema", marks=pytest.mark.slow), "auto"])
def test_every_verdict_is_there_once_and_as_without_faults(loopback: Loopback, tmp_path: Path, verdicts: str) -> None:
    prompts = PROMPTS if verdicts == "schema" else 100
    loopback.answer = BY_HASH
    whole, _ = judged(loopback, tmp_path / "healthy.sqlite", prompts, 0, verdicts)
    assert len(loopback.calls) == 2 * prompts
    loopback.calls.clear()
    faults = loopback.answer = Faults(BY_HASH, SHARE_OF_FAULTS, hang_seconds=6.0)
    games, said = judged(loopback, tmp_path / "faulty.sqlite", prompts, 20, verdicts, request_seconds=5.0)
    assert set(faults.injected) == {*PASSING, *UNREADABLE}
    assert faults.injected.total() > 0.25 * len(loopback.calls)
    seen = Counter((game.question_id, game.candidate_first) for game in games)
    assert seen == Counter({(str(i), first): 1 for i in range(prompts) for first in (True, False)})
    assert [game.verdict for game in games] == [game.verdict for game in whole]
    assert summarise(games, 100, 0) == summarise(whole, 100, 0)
    # What could not be read was paid for as well.
    paid = 2 * prompts + sum(faults.injected[kind] for kind in UNREADABLE)
    assert said.startswith(f"{paid} requests")
    # All is kept: the same again asks nobody.
    loopback.calls.clear()
    again, said = judged(loopback, tmp_path / "faulty.sqlite", prompts, 20, verdicts)
    assert (again, said, loopback.calls) == (games, f"{2 * prompts} from the cache", [])


def test_what_stays_unreadable_is_asked_for_so_often_and_counted(loopback: Loopback, tmp_path: Path) -> None:
    loopback.answer = lambda call: completion(None, refusal="Never.")
    for retries in (0, 3):
        loopback.calls.clear()
        games, said = judged(loopback, tmp_path / "verdicts.sqlite", 5, retries)
        assert [game.verdict for game in games] == [Verdict.UNREADABLE] * 10
        assert len(loopback.calls) == 10 * (1 + retries)
        assert said == f"{10 * (1 + retries)} requests"
        assert summarise(games, 100, 0).unreadable_share == 1.0
