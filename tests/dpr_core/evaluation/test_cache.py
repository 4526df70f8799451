import asyncio
import multiprocessing
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dpr_core.evaluation.cache import CachedJudge, VerdictCache, comparison_key
from dpr_core.evaluation.judge import Answer, Comparison, Judgment, Verdict
from dpr_core.evaluation.questions import Question

COMPARISON = Comparison(Question(id="q", turns=("Why?",)), Answer.of("because"), Answer.of("no"))


class Counting:
    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.asked = 0

    async def prepare(self, comparisons: Sequence[Comparison]) -> None:
        pass

    async def compare(self, comparison: Comparison) -> Judgment:
        self.asked += 1
        return Judgment(self.verdict, f"words {self.asked}", {"prompt_tokens": 7})

    def status(self) -> str:
        return f"{self.asked} requests"

    async def close(self) -> None:
        pass


def ask(judge: CachedJudge, comparison: Comparison = COMPARISON) -> Judgment:
    return asyncio.run(judge.compare(comparison))


def test_the_same_is_asked_once_by_all_who_share_the_file(tmp_path: Path) -> None:
    first, second = Counting(Verdict.FIRST), Counting(Verdict.SECOND)
    path = tmp_path / "new" / "verdicts.sqlite"
    judge = CachedJudge(first, VerdictCache(path), "gpt-4o")
    again = CachedJudge(second, VerdictCache(path), "gpt-4o")
    assert ask(judge) == ask(judge) == ask(again) == Judgment(Verdict.FIRST, "words 1", {"prompt_tokens": 7})
    assert (first.asked, second.asked) == (1, 0)
    assert judge.status() == "1 requests, 1 from the cache"


def test_what_cannot_be_read_is_asked_again(tmp_path: Path) -> None:
    inner = Counting(Verdict.UNREADABLE)
    judge = CachedJudge(inner, VerdictCache(tmp_path / "verdicts.sqlite"), "gpt-4o")
    ask(judge)
    ask(judge)
    assert inner.asked == 2


QUESTION = COMPARISON.question


@pytest.mark.parametrize(
    ("identity", "comparison"),
    [
        ("gpt-4o-mini", COMPARISON),
        ("gpt-4o", replace(COMPARISON, first=COMPARISON.second, second=COMPARISON.first)),
        ("gpt-4o", replace(COMPARISON, first=Answer.of("because."))),
        ("gpt-4o", replace(COMPARISON, first=Answer(("because", "")))),
        ("gpt-4o", replace(COMPARISON, question=replace(QUESTION, turns=("Why",)))),
        ("gpt-4o", replace(COMPARISON, question=replace(QUESTION, system="Be brief."))),
        ("gpt-4o", replace(COMPARISON, question=replace(QUESTION, reference="42"))),
    ],
)
def test_whatever_a_verdict_depends_on_is_in_its_key(identity: str, comparison: Comparison) -> None:
    assert comparison_key(identity, comparison) != comparison_key("gpt-4o", COMPARISON)
    assert comparison_key("gpt-4o", replace(COMPARISON)) == comparison_key("gpt-4o", COMPARISON)


def test_the_first_verdict_stays(tmp_path: Path) -> None:
    cache = VerdictCache(tmp_path / "verdicts.sqlite")
    cache.put("k", Judgment(Verdict.FIRST, "a"))
    cache.put("k", Judgment(Verdict.SECOND, "b"))
    assert cache.get("k") == Judgment(Verdict.FIRST, "a")


def write_many(path: Path, start: int) -> None:
    cache = VerdictCache(path)
    for i in range(start, start + 200):
        cache.put(str(i), Judgment(Verdict.TIE, str(i)))


def test_processes_write_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.sqlite"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(path, 100 * i)) for i in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    cache = VerdictCache(path)
    assert all(cache.get(str(i)) == Judgment(Verdict.TIE, str(i)) for i in range(400))
