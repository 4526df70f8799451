import asyncio
import json
import multiprocessing
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dpr_core.config.evaluation import (
    JudgeConfig,
    JudgeExecutionConfig,
    OpenAIBatchJudgeConfig,
    OpenAIJudgeConfig,
    OpenAIRaterConfig,
    RateConfig,
)
from dpr_core.evaluation.ask import CachedJudge, key_of
from dpr_core.evaluation.cache import VerdictCache
from dpr_core.evaluation.endpoint import UnavailableError
from dpr_core.evaluation.judge import build_judge, build_rater, identity, rating_template
from dpr_core.evaluation.pairwise import Answer, Comparison, Judgment, PairwiseJudge, Verdict
from dpr_core.evaluation.prompts import PairwisePrompt
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.rate import Turn
from tests.loopback import Loopback, Reply, completion

PROMPT = PairwisePrompt(100_000)
COMPARISON = Comparison(Question(id="q", turns=("Why?",)), Answer.of("because"), Answer.of("no"))


class Counting:
    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.asked = 0

    async def prepare(self, comparisons: Sequence[Comparison]) -> None:
        pass

    async def judge(self, comparison: Comparison) -> Judgment:
        self.asked += 1
        return Judgment(self.verdict, f"words {self.asked}", {"prompt_tokens": 7})

    def status(self) -> str:
        return f"{self.asked} requests"

    async def close(self) -> None:
        pass


def ask(judge: PairwiseJudge, comparison: Comparison = COMPARISON) -> Judgment:
    return asyncio.run(judge.judge(comparison))


def test_the_same_is_asked_once_by_all_who_share_the_file(tmp_path: Path) -> None:
    first, second = Counting(Verdict.FIRST), Counting(Verdict.SECOND)
    path = tmp_path / "new" / "verdicts.sqlite"
    judge = CachedJudge(first, VerdictCache(path), "gpt-4o", PROMPT.judgment)
    again = CachedJudge(second, VerdictCache(path), "gpt-4o", PROMPT.judgment)
    assert ask(judge) == ask(judge) == ask(again) == Judgment(Verdict.FIRST, "words 1", {"prompt_tokens": 7})
    assert (first.asked, second.asked) == (1, 0)
    assert judge.status() == "1 requests, 1 from the cache"


def test_the_same_asked_at_once_is_asked_once_and_by_the_next_where_that_fails(tmp_path: Path) -> None:
    class Slow(Counting):
        async def judge(self, comparison: Comparison) -> Judgment:
            await asyncio.sleep(0.01)
            judgment = await super().judge(comparison)
            if self.asked == 1:
                raise UnavailableError("not now")
            return judgment

    async def three() -> list[Judgment | BaseException]:
        return await asyncio.gather(*(judge.judge(COMPARISON) for _ in range(3)), return_exceptions=True)

    inner = Slow(Verdict.FIRST)
    judge = CachedJudge(inner, VerdictCache(tmp_path / "verdicts.sqlite"), "gpt-4o", PROMPT.judgment)
    failed, *found = asyncio.run(three())
    assert isinstance(failed, UnavailableError)
    assert (found[0], inner.asked) == (found[1], 2)


def test_what_cannot_be_read_is_asked_again(tmp_path: Path) -> None:
    inner = Counting(Verdict.UNREADABLE)
    judge = CachedJudge(inner, VerdictCache(tmp_path / "verdicts.sqlite"), "gpt-4o", PROMPT.judgment)
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
    assert key_of(identity, comparison) != key_of("gpt-4o", COMPARISON)
    assert key_of("gpt-4o", replace(COMPARISON)) == key_of("gpt-4o", COMPARISON)


def test_verdicts_from_before_categories_and_dates_are_known(tmp_path: Path) -> None:
    cache, inner = VerdictCache(tmp_path / "verdicts.sqlite"), Counting(Verdict.SECOND)
    judge = CachedJudge(inner, cache, "gpt-4o-dated", PROMPT.judgment, ("gpt-4o", "gpt-4o-dated"))
    for name in ("dated", "undated", "another"):
        asked = replace(COMPARISON, question=replace(QUESTION, id=name))
        called = "gpt-4o-dated" if name == "dated" else "gpt-4o"
        model = "gpt-4o-later" if name == "another" else "gpt-4o-dated"
        cache.put(key_of(called, asked), "first", "kept", {"model": model})
        found = ask(judge, replace(asked, question=replace(asked.question, category="coding")))
        assert found.verdict is (Verdict.SECOND if name == "another" else Verdict.FIRST)
    assert inner.asked == 1


def test_the_first_verdict_stays(tmp_path: Path) -> None:
    cache = VerdictCache(tmp_path / "verdicts.sqlite")
    cache.put("k", "first", "a", {"n": 1})
    cache.put("k", "second", "b", {})
    assert cache.get("k") == ("first", "a", {"n": 1})


def write_many(path: Path, start: int) -> None:
    cache = VerdictCache(path)
    for i in range(start, start + 200):
        cache.put(str(i), "tie", str(i), {})


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
    assert all(cache.get(str(i)) == ("tie", str(i), {}) for i in range(400))


KEPT = {
    "505e239f66ee662e120582ca8f0d95a200b55d869022dadb3b20e6ac32bdb5d3": ("second", "B, because."),
    "8f2057e80b48f2226a9e1a3d1cc260731a4a3e1d68cd5b4c15e27c81109b9d23": ("7.5", "RATING: [[7.5]]"),
}
"""Rows of a file that version 0.1.0 wrote. Other instructions to the judge, and nothing else, may change the keys."""


def test_a_file_of_an_earlier_version_is_still_hit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    path = tmp_path / "verdicts.sqlite"
    with sqlite3.connect(path) as rows:
        rows.execute(
            "CREATE TABLE verdicts (key TEXT PRIMARY KEY, verdict TEXT NOT NULL, raw TEXT NOT NULL, "
            "details TEXT NOT NULL, made TEXT NOT NULL)"
        )
        for key, (value, raw) in KEPT.items():
            values = (key, value, raw, '{"model": "m"}', "2026-11-01T00:00:00+00:00")
            rows.execute("INSERT INTO verdicts VALUES (?, ?, ?, ?, ?)", values)
    for by in (OpenAIJudgeConfig(model="judge"), OpenAIBatchJudgeConfig(model="judge")):
        judge = build_judge(by, JudgeExecutionConfig(), lambda question, text: None, path)
        assert asyncio.run(judge.judge(COMPARISON)) == Judgment(Verdict.SECOND, "B, because.", {"model": "m"})
    settings = RateConfig(by=OpenAIRaterConfig(model="rater"))
    rater = build_rater(settings, rating_template(settings), path)
    rating = asyncio.run(rater.judge(Turn(QUESTION, ("because",), judging=2)))
    assert (rating.score, rating.raw, rating.details) == (7.5, "RATING: [[7.5]]", {"model": "m"})
    assert rating.template == "dense-path-single"


@pytest.mark.parametrize(("served", "asked"), [("gpt-4o-2024-08-06", 1), ("gpt-4o-2024-05-13", 2)])
def test_a_verdict_by_a_name_without_a_date_counts_for_the_snapshot_that_gave_it(
    loopback: Loopback, tmp_path: Path, served: str, asked: int
) -> None:
    said = completion("VERDICT: A").body
    assert isinstance(said, dict)
    loopback.answer = lambda call: Reply({**said, "model": served})
    for model in ("gpt-4o", "gpt-4o-2024-08-06"):
        config = OpenAIJudgeConfig(model=model, base_url=loopback.url, verdicts="text")
        judge = build_judge(config, JudgeExecutionConfig(), lambda question, text: None, tmp_path / "verdicts.sqlite")
        assert ask(judge).verdict is Verdict.FIRST
    assert len(loopback.calls) == asked


def test_settings_that_are_not_set_are_in_no_key() -> None:
    plain = OpenAIJudgeConfig(model="m")
    assert not {"reasoning_effort", "extra_body"} & json.loads(identity(plain)).keys()
    for more in ({"reasoning_effort": "low"}, {"extra_body": {"a": 1}}, {"temperature": None}):
        other = plain.model_copy(update=more)
        assert identity(other) != identity(plain)
        # What is planned is remembered by its settings.
        assert len({JudgeConfig(by=plain), JudgeConfig(by=other), JudgeConfig(by=other)}) == 2
