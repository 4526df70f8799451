"""What was metered is at least what was served, and never more than the cap, whatever server and processes do."""

import asyncio
import multiprocessing
import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dpr_core.config import evaluation as settings
from dpr_core.errors import DensePathError
from dpr_core.evaluation import ask, endpoint
from dpr_core.evaluation.budget import BudgetReachedError
from dpr_core.evaluation.cache import VerdictCache
from dpr_core.evaluation.judge import build_judge
from dpr_core.evaluation.pairwise import Answer, Pair, PairwiseJudge, judge_pairs
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.spending import BILLION, SPENDING, Spending
from tests.dpr_core.evaluation.asking import COMPARISON
from tests.loopback import Call, Loopback, Reply, completion, refused

READ, WRITTEN = 100.0, 1000.0
"""Dollars a million."""

FAULTS = ("late", "reset", "broken", "cut", "double", "500", "503", "429", "gateway", "untold", "filtered", "zero")


class Billing:
    """Serves, bills and fails as a seed says, and keeps the bill."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.dollars = 0.0
        self.served = 0
        self.seen: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, call: Call) -> Reply:
        with self._lock:
            kind = self.random.choice(FAULTS) if self.random.random() < 0.6 else "well"
            self.seen[kind] += 1
            if kind in ("429", "503"):
                return refused(int(kind), "no time")
            times = 2 if kind == "double" else 1
            # As many tokens as there can be are sometimes what there are.
            size = sum(len(message["content"]) for message in call.json["messages"])
            read = self.random.choice((size // times, size // 4))
            written = self.random.randint(0, call.json["max_completion_tokens"] // times)
            self.served += times
            self.dollars += times * (read * READ + written * WRITTEN) / 1e6
        body = completion("VERDICT: A").body
        assert isinstance(body, dict)
        reply = Reply({**body, "usage": {"prompt_tokens": times * read, "completion_tokens": times * written}})
        match kind:
            case "late":
                return replace(reply, after=0.3)
            case "reset":
                return replace(reply, length=0)
            case "broken":
                return replace(reply, length=30)
            case "cut":
                return Reply('{"id": "c1", "cho', headers={"Content-Type": "application/json"})
            case "500" | "gateway":
                return refused(500 if kind == "500" else 504, "it was too much")
            case "untold":
                return Reply(body | {"usage": None})
            case "zero":
                return Reply(body | {"usage": {"prompt_tokens": 0, "completion_tokens": 0}})
            case "filtered":
                return refused(400, "The prompt triggered the content management policy.")
        return reply


def judge_for(url: str, home: Path, dollars: float, **execution: Any) -> PairwiseJudge:
    config = settings.OpenAIJudgeConfig(model="judge", base_url=url, verdicts="text", max_tokens=64)
    return build_judge(config, limited(dollars, **execution), lambda question, text: None, home / "verdicts.sqlite")


def limited(dollars: float, **execution: Any) -> settings.JudgeExecutionConfig:
    return settings.JudgeExecutionConfig(
        **{"retries": 2, "rounds": 2, "concurrency": 8, "request_seconds": 0.15, **execution},
        budget_dollars=dollars,
        dollars_per_million_read=READ,
        dollars_per_million_written=WRITTEN,
    )


def play(url: str, home: Path, dollars: float, pairs: int = 20) -> None:
    asked = [Pair(Question(str(i), (f"{i}?",)), Answer.of("x"), Answer.of("y")) for i in range(pairs)]
    asyncio.run(judge_pairs(judge_for(url, home, dollars), asked, limited(dollars), lambda *note: None))


def metered(home: Path) -> float:
    return Spending(home / SPENDING).total("judging") / BILLION


@pytest.mark.parametrize("seed", range(3))
def test_metered_is_at_least_served_and_at_most_the_cap_over_all_runs(
    loopback: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    for module, name in ((endpoint, "FIRST_PAUSE"), (ask, "MOST_SECONDS_BETWEEN_ROUNDS")):
        monkeypatch.setattr(module, name, 0.01)
    bill = loopback.answer = Billing(seed)
    caps = (2.0, 2.0, 4.0, 6.0)
    for cap in caps:
        with suppress(DensePathError):
            play(loopback.url, tmp_path, cap)
        assert bill.dollars <= metered(tmp_path) <= cap
    assert bill.served > 10
    assert len(bill.seen) > 5


def test_a_cap_is_reached_in_a_sentence_and_a_higher_one_goes_on(loopback: Loopback, tmp_path: Path) -> None:
    loopback.answer = lambda call: completion("VERDICT: A")
    with pytest.raises(BudgetReachedError, match=r"budget_dollars=1 is spent.*ever spent in this DPR_HOME"):
        play(loopback.url, tmp_path, 1.0)
    first = len(loopback.calls)
    # Another stage or run has the same cap, and nothing is left of it.
    with pytest.raises(BudgetReachedError):
        play(loopback.url, tmp_path, 1.0)
    assert len(loopback.calls) == first > 0
    play(loopback.url, tmp_path, 10.0)
    assert len(loopback.calls) == 40
    # 40 times 100 tokens read and 20 written.
    assert metered(tmp_path) == pytest.approx(40 * (100 * READ + 20 * WRITTEN) / 1e6)
    (spent,) = Spending(tmp_path / SPENDING).by_model()
    assert (spent.requests, spent.read, spent.written, spent.without_answer) == (40, 4000, 800, 0)


@pytest.mark.slow
def test_a_run_that_is_killed_has_paid_for_what_was_under_way(loopback: Loopback, tmp_path: Path) -> None:
    bill = Billing(0)
    loopback.answer = lambda call: replace(bill(call), after=0.05)
    process = multiprocessing.get_context("spawn").Process(target=play, args=(loopback.url, tmp_path, 50.0, 200))
    process.start()
    end = time.monotonic() + 60
    while bill.served < 20 and time.monotonic() < end:
        time.sleep(0.01)
    process.kill()
    process.join()
    (spent,) = Spending(tmp_path / SPENDING).by_model()
    assert bill.dollars <= metered(tmp_path)
    assert spent.without_answer > 0


def charge_for_ever(path: Path, cap: int) -> None:
    ledger = Spending(path)
    while (charge := ledger.charge("judging", "m", 10, cap)) is not None:
        ledger.answer(charge, 7, 1, 1)
    ledger.flush()
    time.sleep(60)


@pytest.mark.slow
def test_processes_share_a_cap_and_one_that_is_killed_leaves_its_charge(tmp_path: Path) -> None:
    path = tmp_path / SPENDING
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=charge_for_ever, args=(path, 4_000)) for _ in range(2)]
    for process in processes:
        process.start()
    ledger = Spending(path)
    end = time.monotonic() + 60
    while ledger.total("judging") < 1_000 and time.monotonic() < end:
        time.sleep(0.001)
    assert processes[0].pid is not None
    os.kill(processes[0].pid, signal.SIGKILL)
    while ledger.total("judging") < 3_980 and time.monotonic() < end:
        time.sleep(0.01)
    processes[1].kill()
    for process in processes:
        process.join()
    (spent,) = Spending(path).by_model()
    assert 3_980 <= ledger.total("judging") <= 4_000
    assert ledger.total("judging") == 7 * spent.requests + 10 * spent.without_answer
    assert spent.without_answer <= 2


def test_accounts_have_budgets_of_their_own(tmp_path: Path) -> None:
    ledger = Spending(tmp_path / SPENDING)
    assert ledger.charge("a", "m", 60, 100) is not None
    assert ledger.charge("a", "m", 60, 100) is None
    assert ledger.charge("b", "m", 60, 100) is not None


def test_a_batch_is_charged_once_by_all_who_wait_for_it(tmp_path: Path) -> None:
    first, second = (Spending(tmp_path / SPENDING) for _ in range(2))
    charge = first.charge("a", "m", 60, 100, requests=3, batch="file-1")
    assert charge is not None
    assert second.charge("a", "m", 60, 100, requests=3, batch="file-1") == charge
    for ledger in (first, second):
        ledger.answer(charge, 20, 1, 1, 3)
        ledger.flush()
    assert first.total("a") == 20


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ("UPDATE totals SET billionths = 1", "the total of 'judging' is not the sum of its charges"),
        ("DROP TABLE charges", "the total of 'judging' is not the sum"),
        ("ALTER TABLE charges RENAME COLUMN account TO who", "no such column"),
    ],
)
def test_a_ledger_that_was_edited_is_told_in_a_sentence(tmp_path: Path, edit: str, said: str) -> None:
    Spending(tmp_path / SPENDING).charge("judging", "m", 10, None)
    with sqlite3.connect(tmp_path / SPENDING) as rows:
        rows.execute(edit)
    with pytest.raises(DensePathError, match=f"damaged or was edited by hand: {said}.*restore it"):
        Spending(tmp_path / SPENDING)


@pytest.mark.parametrize("made", [Spending, VerdictCache])
def test_a_file_that_is_no_database_is_told_in_a_sentence(tmp_path: Path, made: Any) -> None:
    path = tmp_path / "it.sqlite"
    path.write_bytes(b"these are no tables " * 1000)
    with pytest.raises(DensePathError, match="file is not a database; restore it, or move it away"):
        made(path)


@pytest.mark.parametrize(
    "edit",
    ["SET verdict = 'first, I think'", "SET details = 'none'", "SET details = '[]'", "SET raw = x'00'"],
)
def test_a_verdict_that_was_edited_by_hand_is_told_in_a_sentence(loopback: Loopback, tmp_path: Path, edit: str) -> None:
    loopback.answer = lambda call: completion("VERDICT: A")
    asyncio.run(judge_for(loopback.url, tmp_path, 10.0).judge(COMPARISON))
    with sqlite3.connect(tmp_path / "verdicts.sqlite") as rows:
        rows.execute(f"UPDATE verdicts {edit}")
    with pytest.raises(DensePathError, match=r"edited by hand: the row [0-9a-f]{64} is not as a judge's verdict"):
        asyncio.run(judge_for(loopback.url, tmp_path, 10.0).judge(COMPARISON))


def test_a_table_of_other_columns_is_told_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.sqlite"
    with sqlite3.connect(path) as rows:
        rows.execute("CREATE TABLE verdicts (prompt TEXT, response TEXT)")
    with pytest.raises(DensePathError, match="edited by hand: no such column: verdict"):
        VerdictCache(path).get("k")
