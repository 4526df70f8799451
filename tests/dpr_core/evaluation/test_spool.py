import asyncio
import gc
import hashlib
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from dpr_core.config.evaluation import JudgeExecutionConfig
from dpr_core.errors import DensePathError
from dpr_core.evaluation.ask import RuleJudge, Unreadable
from dpr_core.evaluation.judge import judged_by
from dpr_core.evaluation.pairwise import (
    Answer,
    Comparison,
    Game,
    Judgment,
    Pair,
    Verdict,
    answers_cut,
    judge_pairs,
    summarise,
)
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.spool import Spool
from dpr_core.hashing import hash_file
from tasks.stages.answer import write_rows

WORDS = "It says \u2028 what \ud800 it likes.\n" * 20


def test_what_is_written_in_any_order_is_read_in_order(tmp_path: Path) -> None:
    spool = Spool(4, tmp_path)
    values = [WORDS, {"é": 1}, [None, 0.1], "\0"]
    for i in (2, 0, 3, 1):
        spool[i] = values[i]
    assert [spool[i] for i in range(4)] == values
    assert (spool[3], spool[0]) == (values[3], values[0])


def test_the_file_has_no_name_and_goes_with_its_holder(tmp_path: Path) -> None:
    spool = Spool(1, tmp_path)
    spool[0] = "words"
    assert list(tmp_path.iterdir()) == []
    file = spool._file
    del spool
    gc.collect()
    assert file.closed


def test_no_room_is_said_and_stops_the_judging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DensePathError, match=r"no room .* in .*nowhere \(No such file"):
        Spool(1, tmp_path / "nowhere")

    class Full:
        def write(self, line: bytes) -> int:
            raise OSError(28, "No space left on device")

        def close(self) -> None: ...

    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: Full())
    asked: list[Any] = []
    judge = RuleJudge(lambda comparison: asked.append(comparison) or Judgment(Verdict.FIRST, "words"))
    with pytest.raises(DensePathError, match=r"No space left on device.*same command again"):
        asyncio.run(judge_pairs(judge, pairs_of(50), JudgeExecutionConfig(concurrency=2), lambda *each: None))
    assert len(asked) < 10


def pairs_of(count: int) -> list[Pair]:
    return [Pair(Question(f"question {i}", ("?",)), Answer.of("a"), Answer.of("b")) for i in range(count)]


def bytes_held(count: int) -> int:
    """At the most, while so many pairs are judged and all is made of their games that a stage makes of them."""
    pairs = pairs_of(count)
    told = {"model": "judge", "prompt_tokens": 100}
    judge = RuleJudge(lambda comparison: Judgment(Verdict.FIRST, WORDS, dict(told)))
    tracemalloc.start()
    games = asyncio.run(judge_pairs(judge, pairs, JudgeExecutionConfig(), lambda *each: None))
    summarise(games, 1, 0, (pair.question for pair in pairs))
    Unreadable.among(games, "verdicts")
    judged_by(JudgeExecutionConfig(), (game.details for game in games))
    answers_cut(games)
    return tracemalloc.get_traced_memory()[1]


def test_memory_hardly_grows_with_games(request: pytest.FixtureRequest) -> None:
    request.addfinalizer(tracemalloc.stop)
    bytes_held(10)
    few = bytes_held(200)
    tracemalloc.stop()
    assert (bytes_held(1000) - few) / 1600 < 100


def test_games_are_the_same_each_time_that_they_are_read() -> None:
    details = {"model": "judge", "prompt_tokens": 100}
    judge = RuleJudge(lambda shown: Judgment(Verdict.TIE, WORDS + shown.first.turns[0], details, "A=B"))
    pairs = [Pair(Question("q", ("?", "!")), Answer.of("a"), Answer.of("b"), turn) for turn in (1, 2)]
    games = asyncio.run(judge_pairs(judge, pairs, JudgeExecutionConfig(), lambda *each: None))
    expected = [
        Game("q", first, Verdict.TIE, WORDS + ("a" if first else "b"), details, "A=B", turn)
        for turn in (1, 2)
        for first in (True, False)
    ]
    assert list(games) == list(games) == games[:] == expected
    assert (games[-1], games[::2], len(games)) == (expected[-1], expected[::2], 4)
    with pytest.raises(IndexError):
        games[4]


def test_the_rows_are_those_of_games_that_were_held_in_memory(tmp_path: Path) -> None:
    """The hash is of what was written before the spool."""

    def said(shown: Comparison) -> Judgment:
        n = int(hashlib.sha256(f"{shown.question.id} {shown.first.turns[0]}".encode()).hexdigest(), 16)
        details = {"model": "judge", "prompt_tokens": n % 97}
        label = "A>>B" if n % 3 == 0 else ""
        return Judgment(list(Verdict)[n % 4], f"Weil ich's so sage: \u2028 {n % 1000}\n", details, label)

    pairs = [Pair(each.question, each.candidate, each.baseline, turn) for each in pairs_of(100) for turn in (1, 2)]
    games = asyncio.run(judge_pairs(RuleJudge(said), pairs, JudgeExecutionConfig(concurrency=7), lambda *each: None))
    write_rows(tmp_path / "games.jsonl", [game.as_dict() for game in games])
    assert hash_file(tmp_path / "games.jsonl") == "82a4c58e35d9cbfe1887dd457a736324db7d5d32febd8d18d997b8b3daa71bff"
