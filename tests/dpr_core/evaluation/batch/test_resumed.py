"""A batch is paid for once, whatever happens to those who wait for it."""

import asyncio
import multiprocessing
import re
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dpr_core.config import evaluation as settings
from dpr_core.errors import DensePathError
from dpr_core.evaluation.batch.judge import BatchJudge
from dpr_core.evaluation.budget import BudgetReachedError
from dpr_core.evaluation.endpoint import UnavailableError
from dpr_core.evaluation.judge import build_judge, identity
from dpr_core.evaluation.pairwise import Answer, Game, Pair, judge_pairs
from dpr_core.evaluation.prompts import PairwisePrompt
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.spending import BILLION, SPENDING, Spending
from tests.dpr_core.evaluation.batch.batching import EXPECTED, PAIRS, build, outcomes, play, settled
from tests.loopback import refused
from tests.loopback_batches import Batches, Outcome

MORE = Pair(Question(id="6", turns=("6?",)), Answer.of("xxxx"), Answer.of("x"))


def ask_and_wait(url: str, cache: Path) -> None:
    config = settings.OpenAIBatchJudgeConfig(model="gpt-4o", base_url=url)
    play(build_judge(config, settled(), lambda question, text: None, cache))


def test_a_run_that_is_killed_leaves_its_batch_to_the_next(batches: Batches, tmp_path: Path) -> None:
    batches.looks_before_the_end = 10**9
    arguments = (batches.server.url, tmp_path / "verdicts.sqlite")
    process = multiprocessing.get_context("spawn").Process(target=ask_and_wait, args=arguments)
    process.start()
    end = time.monotonic() + 60
    while not batches.looks and time.monotonic() < end:
        time.sleep(0.02)
    process.kill()
    process.join()
    assert len(batches.batches) == 1
    batches.looks_before_the_end = 0
    # What is new goes into a batch of its own, and what is not asked for any more waits until it is.
    assert outcomes(play(build(batches, tmp_path / "verdicts.sqlite"), [*PAIRS[:4], MORE]))[6] == "won"
    assert outcomes(play(build(batches, tmp_path / "verdicts.sqlite"))) == EXPECTED
    assert [len(batches.requests(i)) for i in range(len(batches.batches))] == [12, 2]


@pytest.mark.parametrize("rounds", [0, 1], ids=["by the next run", "by the same run"])
def test_a_batch_of_which_no_word_came_back_is_found(batches: Batches, tmp_path: Path, rounds: int) -> None:
    create, lost = batches.create, []

    def without_a_word(call: Any) -> Any:
        reply = create(call)
        lost.append(call)
        return reply if len(lost) > 1 else type(reply)(reply.body, length=0)

    batches.server.route("POST", "/v1/batches", without_a_word)
    if not rounds:
        with pytest.raises(UnavailableError):
            play(build(batches, tmp_path / "verdicts.sqlite", rounds=0, retries=2))
    assert outcomes(play(build(batches, tmp_path / "verdicts.sqlite", rounds=1, retries=2))) == EXPECTED
    assert len(batches.batches) == 1


def test_requests_that_were_uploaded_and_not_sent_are_sent(batches: Batches, tmp_path: Path) -> None:
    batches.server.route("POST", "/v1/batches", lambda call: refused(500, "not now"))
    with pytest.raises(UnavailableError, match="not now"):
        play(build(batches, tmp_path / "verdicts.sqlite", rounds=0))
    batches.server.routes.pop(0)
    assert outcomes(play(build(batches, tmp_path / "verdicts.sqlite"))) == EXPECTED
    assert len(batches.batches) == 1


def test_a_batch_that_the_endpoint_forgot_is_sent_again(batches: Batches, tmp_path: Path) -> None:
    batches.looks_before_the_end = 10**9
    with pytest.raises(DensePathError, match=r"no end in 1e-09 hours of waiting: batch_1 validating, 0 of 12 answered"):
        play(build(batches, tmp_path / "verdicts.sqlite", batch_wait_hours=1e-9))
    batches.looks_before_the_end = 0
    batches.batches["batch_0"] = batches.batches.pop("batch_1")
    assert outcomes(play(build(batches, tmp_path / "verdicts.sqlite"))) == EXPECTED
    assert len(batches.batches) == 2


def test_two_who_ask_the_same_at_once_wait_for_one_batch(batches: Batches, tmp_path: Path) -> None:
    batches.looks_before_the_end = 20
    pairs = PAIRS[:3]

    async def both() -> list[Sequence[Game]]:
        judges = [build(batches, tmp_path / "verdicts.sqlite") for _ in range(2)]
        return await asyncio.gather(*(judge_pairs(each, pairs, settled(), lambda *note: None) for each in judges))

    first, second = map(list, asyncio.run(both()))
    assert outcomes(first) == outcomes(second) == {i: EXPECTED[i] for i in range(3)}
    assert len(batches.batches) == 1


def test_what_an_earlier_batch_left_out_is_sent_and_counts_as_no_second_time(batches: Batches, tmp_path: Path) -> None:
    batches.looks_before_the_end = 10**9
    with pytest.raises(DensePathError, match="no end in"):
        play(build(batches, tmp_path / "verdicts.sqlite", batch_wait_hours=1e-9))
    batches.looks_before_the_end = 0
    batches.outcomes = [lambda requests: Outcome([batches.answered(requests[0])], [], "expired")]
    assert outcomes(play(build(batches, tmp_path / "verdicts.sqlite", rounds=0))) == EXPECTED
    assert [len(batches.requests(i)) for i in range(len(batches.batches))] == [12, 11]


def test_what_another_process_has_got_in_the_meantime_is_not_sent(batches: Batches, tmp_path: Path) -> None:
    config = settings.OpenAIBatchJudgeConfig(model="gpt-4o", base_url=batches.server.url)
    late = BatchJudge(config, settled(), PairwisePrompt(1000), identity(config), tmp_path / "verdicts.sqlite")
    once = play(build(batches, tmp_path / "verdicts.sqlite"))
    assert play(late) == once
    assert len(batches.batches) == 1


def test_trouble_on_the_way_does_not_end_the_waiting(batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    def troubled(call: Any) -> Any:
        return refused(500, "not now") if batches.looks < 20 and next(odd) else batches.look(call)

    odd = iter([True, False] * 100)
    batches.looks_before_the_end = 10
    batches.server.route("GET", "/v1/batches/[^/]+", troubled)
    monkeypatch.setattr("dpr_core.evaluation.ask.SECONDS_BETWEEN_NOTES", 0.01)
    notes: list[str] = []
    assert outcomes(play(build(batches), notes=notes)) == EXPECTED
    assert any("batch_1 validating, 0 of 12 answered" in note for note in notes)
    assert any("batch_1: no news" in note for note in notes)
    assert "batch_1" not in notes[-1]


def test_nothing_is_on_record_once_all_has_come(batches: Batches, tmp_path: Path) -> None:
    play(build(batches, tmp_path / "verdicts.sqlite"))
    rows = sqlite3.connect(tmp_path / "verdicts.sqlite")
    assert rows.execute("SELECT COUNT(*) FROM under_way").fetchone() == (0,)
    assert rows.execute("SELECT COUNT(*) FROM verdicts").fetchone() == (12,)


def test_a_batch_is_charged_at_its_most_until_it_is_answered_whoever_waits_for_it(
    batches: Batches, tmp_path: Path
) -> None:
    ledger = Spending(tmp_path / SPENDING)
    batches.looks_before_the_end = 10**9
    for _ in range(2):
        with pytest.raises(DensePathError, match="no end in"):
            play(build(batches, tmp_path / "verdicts.sqlite", batch_wait_hours=1e-9, budget_dollars=0.06))
        # 12 requests of at most 512 tokens each, before anything is read.
        assert 0.03 < ledger.total("judging") / BILLION < 0.06
    with pytest.raises(BudgetReachedError, match=r"\$0\.05 set aside"):
        play(build(batches, tmp_path / "verdicts.sqlite", budget_dollars=0.06), [MORE])
    batches.looks_before_the_end = 0
    play(build(batches, tmp_path / "verdicts.sqlite", budget_dollars=0.06), [*PAIRS, MORE])
    # 14 requests of 100 tokens read and 20 written, at the prices of batches.
    assert ledger.total("judging") / BILLION == pytest.approx(14 * (100 * 1.25 + 20 * 5.00) / 1e6)


@pytest.mark.parametrize("usage", ['"usage": null', '"usage": {"prompt_tokens": "many"}'])
def test_a_batch_that_does_not_say_what_it_used_stays_at_its_most(batches: Batches, tmp_path: Path, usage: str) -> None:
    def untold(requests: list[Any]) -> Outcome:
        first, *rest = map(batches.answered, requests)
        return Outcome([re.sub(r'"usage": \{[^}]*\}', usage, first), *rest], [])

    batches.outcomes = [untold]
    play(build(batches, tmp_path / "verdicts.sqlite", rounds=2))
    assert Spending(tmp_path / SPENDING).total("judging") / BILLION > 0.03
