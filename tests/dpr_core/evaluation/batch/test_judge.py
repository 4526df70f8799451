"""What is sent in a batch, and what is read of what comes back."""

import asyncio
import traceback
from pathlib import Path
from typing import Any

import pytest

from dpr_core.config import evaluation as settings
from dpr_core.errors import DensePathError
from dpr_core.evaluation.batch.judge import BatchJudge
from dpr_core.evaluation.budget import BudgetReachedError, most_tokens_in
from dpr_core.evaluation.canaries import try_judge
from dpr_core.evaluation.endpoint import UnavailableError
from dpr_core.evaluation.judge import build_judge
from dpr_core.evaluation.pairwise import Answer, Game, Pair, PairwiseJudge, Verdict, judge_pairs
from dpr_core.evaluation.questions import Question
from tests.dpr_core.evaluation.batch.batching import EXPECTED, PAIRS, build, ids, outcomes, play, settled
from tests.loopback import KEY, Loopback, completion, refused
from tests.loopback_batches import Batches, Outcome, Request, result, unanswered


@pytest.mark.parametrize(("verdicts", "as_json"), [("auto", True), ("schema", True), ("text", False)])
def test_one_batch_is_sent_and_read_by_the_ids_alone(batches: Batches, verdicts: str, as_json: bool) -> None:
    batches.looks_before_the_end = 2
    judge = build(batches, by={"verdicts": verdicts, "max_tokens": 64})
    assert isinstance(judge, BatchJudge)
    games = play(judge)
    assert outcomes(games) == EXPECTED
    (batch,) = batches.batches.values()
    assert (batch["endpoint"], batch["completion_window"]) == ("/v1/chat/completions", "24h")
    requests = batches.requests(0)
    assert len(ids(requests)) == len(requests) == 12
    for request in requests:
        assert (request["method"], request["url"]) == ("POST", "/v1/chat/completions")
        assert ("response_format" in request["body"]) == as_json
        assert {name: request["body"][name] for name in ("model", "temperature", "max_completion_tokens")} == {
            "model": "gpt-4o",
            "temperature": 0.0,
            "max_completion_tokens": 64,
        }
    assert games[0].details["verdicts"] == ("schema" if as_json else "text")
    assert games[0].details["system_fingerprint"] == "fp_1"
    assert batches.server.calls == []
    assert batches.looks == 3
    # Twelve requests of 100 tokens read and 20 written, at half of 2.50 and 10 dollars a million.
    assert judge.endpoint.meter.spent == pytest.approx(12 * (100 * 1.25 + 20 * 5.00) / 1e6)


def test_answers_are_cut_and_counted_as_in_single_requests(batches: Batches) -> None:
    pair = Pair(Question(id="0", turns=("?",)), Answer.of("x" * 150), Answer.of("y" * 40))
    games = play(build(batches, by={"max_answer_characters": 100}), [pair])
    assert [game.details["answers_cut"] for game in games] == [1, 1]
    texts = [request["body"]["messages"][1]["content"] for request in batches.requests(0)]
    assert all("x" * 100 in text and "x" * 101 not in text for text in texts)


@pytest.mark.parametrize("status", ["expired", "cancelled", "failed"])
def test_what_came_of_a_batch_that_broke_off_is_kept_and_only_the_rest_is_sent_again(
    batches: Batches, tmp_path: Path, status: str
) -> None:
    def half(requests: list[Request]) -> Outcome:
        wrong = (("server_error", "Something broke."),) if status == "failed" else ()
        lines = [batches.answered(request) for request in requests[:5]]
        return Outcome(lines, [unanswered(request) for request in requests[5:9]], status, wrong)

    batches.outcomes = [half]
    # Enough for either batch at its dearest, but not for both: what the first did not use is free again.
    judge = build(batches, tmp_path / "verdicts.sqlite", budget_dollars=0.06)
    assert outcomes(play(judge)) == EXPECTED
    first, second = ids(batches.requests(0)), ids(batches.requests(1))
    assert (len(first), len(second), len(batches.batches)) == (12, 7, 2)
    assert second < first
    assert judge.status().startswith("12 requests, ")


def test_what_is_never_answered_is_said_in_words_and_the_rest_is_kept(batches: Batches, tmp_path: Path) -> None:
    def all_but_two(requests: list[Request]) -> Outcome:
        missing = [request for request in requests if request["custom_id"] in lost]
        rest = [request for request in requests if request["custom_id"] not in lost]
        return Outcome([*map(batches.answered, rest)], [*map(unanswered, missing)], "expired")

    def first(requests: list[Request]) -> Outcome:
        lost.update(request["custom_id"] for request in requests[:2])
        return all_but_two(requests)

    lost: set[str] = set()
    batches.outcomes = [first, all_but_two]
    with pytest.raises(
        UnavailableError, match=r"2 of 12 requests were sent in 2 batches and never answered: There was no"
    ):
        play(build(batches, tmp_path / "verdicts.sqlite"))
    assert outcomes(play(build(batches, tmp_path / "verdicts.sqlite"))) == EXPECTED
    assert [len(batches.requests(i)) for i in range(3)] == [12, 2, 2]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_request_that_failed_for_now_is_sent_again(batches: Batches, status: int) -> None:
    def one_fails(requests: list[Request]) -> Outcome:
        failed = result(requests[0], refused(status, "not now"))
        return Outcome([batches.answered(request) for request in requests[1:]], [failed])

    batches.outcomes = [one_fails]
    assert outcomes(play(build(batches))) == EXPECTED
    assert len(batches.requests(1)) == 1


def test_a_request_that_is_too_long_is_a_game_without_a_verdict(batches: Batches) -> None:
    def one_fails(requests: list[Request]) -> Outcome:
        failed = result(requests[0], refused(400, "the context is too short"))
        return Outcome([batches.answered(request) for request in requests[1:]], [failed])

    batches.outcomes = [one_fails]
    games = play(build(batches))
    (lost,) = [game for game in games if game.value is None]
    assert "the context is too short" in str(lost.details["refused"])
    assert len(batches.batches) == 1


def test_a_request_that_a_filter_refused_stays_on_the_bill_at_the_most(batches: Batches) -> None:
    def one_fails(requests: list[Request]) -> Outcome:
        failed = result(requests[0], refused(400, "The response was filtered.", "content_filter"))
        return Outcome([batches.answered(request) for request in requests[1:]], [failed])

    batches.outcomes = [one_fails]
    judge = build(batches)
    play(judge)
    sent = batches.requests(0)[0]["body"]
    most = most_tokens_in(sent["messages"], sent.get("response_format")) * 1.25 + 512 * 5.00
    assert judge.endpoint.meter.spent == pytest.approx((11 * (100 * 1.25 + 20 * 5.00) + most) / 1e6)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (refused(404, "no such model"), "refused a request for the model gpt-4o: no such model; check judge.by.model"),
        (refused(400, "json_schema is not supported"), "set judge.by.verdicts=text"),
        (refused(429, "You exceeded your quota", "insufficient_quota"), "has nothing left to spend"),
    ],
)
def test_a_request_that_was_refused_is_a_failure_in_words(
    batches: Batches, tmp_path: Path, reply: Any, said: str
) -> None:
    def one_fails(requests: list[Request]) -> Outcome:
        return Outcome([batches.answered(request) for request in requests[1:]], [result(requests[0], reply)])

    batches.outcomes = [one_fails]
    with pytest.raises(DensePathError, match=said) as caught:
        play(build(batches, tmp_path / "verdicts.sqlite"))
    assert not isinstance(caught.value, UnavailableError)
    assert len(batches.batches) == 1
    assert outcomes(play(build(batches, tmp_path / "verdicts.sqlite"))) == EXPECTED
    assert len(batches.requests(1)) == 1


def test_lines_that_nobody_can_use_are_counted_and_no_more(batches: Batches) -> None:
    def messy(requests: list[Request]) -> Outcome:
        lines = [batches.answered(request) for request in requests[1:]]
        stranger = result({"custom_id": "somebody else's"}, completion('{"reasons": "", "verdict": "A"}'))
        again = result(requests[1], completion('{"reasons": "I changed my mind.", "verdict": "TIE"}'))
        broken = batches.answered(requests[0])[:-20]
        hollow = result(requests[0], completion("")).replace('"choices": [', '"choices": [], "was": [')
        return Outcome([stranger, *lines, again, broken, hollow, "", "[]"], [unanswered(requests[2])])

    batches.outcomes = [messy]
    judge = build(batches)
    assert outcomes(play(judge)) == EXPECTED
    assert len(batches.requests(1)) == 1
    # The late complaint about a request that was answered is a repetition like the second answer of another.
    assert judge.status().endswith("result lines ignored: 1 unknown and 2 repeated and 3 broken")


def test_a_batch_that_is_refused_as_a_whole_ends_the_work(batches: Batches) -> None:
    wrong = (("model_not_found", "The model gpt-4o does not exist."),)
    batches.outcomes = [lambda requests: Outcome([], [], "failed", wrong)]
    with pytest.raises(DensePathError, match=r"batch_1 failed: The model gpt-4o does not exist\.") as caught:
        play(build(batches))
    assert not isinstance(caught.value, UnavailableError)
    assert len(batches.batches) == 1


def test_a_batch_for_which_there_was_no_room_is_sent_again(batches: Batches) -> None:
    full = (("token_limit_exceeded", "Enqueued token limit reached."),)
    batches.outcomes = [lambda requests: Outcome([], [], "failed", full)]
    assert outcomes(play(build(batches))) == EXPECTED
    batches.outcomes = 2 * [lambda requests: Outcome([], [], "failed", full)]
    with pytest.raises(UnavailableError, match="Enqueued token limit reached"):
        play(build(batches))


def test_an_unreadable_reply_is_no_verdict_and_is_never_cached(batches: Batches, tmp_path: Path) -> None:
    def one_is_odd(requests: list[Request]) -> Outcome:
        return Outcome([result(requests[0], completion("Who knows?")), *map(batches.answered, requests[1:])], [])

    batches.outcomes = [one_is_odd]
    games = play(build(batches, tmp_path / "verdicts.sqlite"))
    assert [game.verdict for game in games].count(Verdict.UNREADABLE) == 1
    assert len(batches.batches) == 1
    assert outcomes(play(build(batches, tmp_path / "verdicts.sqlite"))) == EXPECTED
    assert len(batches.requests(1)) == 1


def test_the_most_that_a_batch_can_cost_is_set_aside_before_it_is_sent(batches: Batches, tmp_path: Path) -> None:
    # 12 requests of at most 512 tokens at half of 10 dollars a million are 3.1 cents before anything is read.
    with pytest.raises(
        BudgetReachedError, match=r"\$0\.00 of .* and a batch of 12 requests, at most \$0\.0\d, could pass it"
    ):
        play(build(batches, budget_dollars=0.031))
    assert batches.files == {}
    assert outcomes(play(build(batches, budget_dollars=0.06))) == EXPECTED
    # A single request, which is not sent where it could pass what is left, costs up to 0.6 cents.
    single = settings.OpenAIJudgeConfig(model="gpt-4o", base_url=batches.server.url)
    execution = settled(budget_dollars=0.0055, concurrency=12)
    with pytest.raises(BudgetReachedError):
        asyncio.run(
            judge_pairs(
                build_judge(single, execution, lambda question, text: None), PAIRS, execution, lambda *note: None
            )
        )


def test_more_than_a_batch_may_hold_is_split(batches: Batches) -> None:
    assert outcomes(play(build(batches, batch_requests=5))) == EXPECTED
    assert [len(batches.requests(i)) for i in range(3)] == [5, 5, 2]


@pytest.mark.parametrize("first", ["openai", "openai-batch"])
def test_a_verdict_is_the_same_however_it_is_delivered(batches: Batches, tmp_path: Path, first: str) -> None:
    def asked(kind: type[settings.JudgeByConfig]) -> list[Game]:
        config = kind(model="gpt-4o", base_url=batches.server.url)
        return play(build_judge(config, settled(), lambda question, text: None, tmp_path / "verdicts.sqlite"))

    kinds: list[Any] = [settings.OpenAIJudgeConfig, settings.OpenAIBatchJudgeConfig]
    once, again = map(asked, kinds if first == "openai" else kinds[::-1])
    assert once == again
    assert (len(batches.server.calls), len(batches.batches)) == ((12, 0) if first == "openai" else (0, 1))


def test_what_a_batch_brought_is_not_called_reused(batches: Batches, tmp_path: Path) -> None:
    def status_after(judge: PairwiseJudge) -> str:
        play(judge)
        return judge.status()

    assert "cache" not in status_after(build(batches, tmp_path / "verdicts.sqlite"))
    assert status_after(build(batches, tmp_path / "verdicts.sqlite")) == "12 from the cache"


def test_an_endpoint_without_batches_is_said_in_a_sentence(loopback: Loopback) -> None:
    config = settings.OpenAIBatchJudgeConfig(model="gpt-4o", base_url=loopback.url)
    with pytest.raises(DensePathError, match=r"Invalid URL \(POST /v1/files\)"):
        play(build_judge(config, settled(), lambda question, text: None))


def test_azure_wants_another_path_in_each_request(batches: Batches) -> None:
    for method, path, answer in [
        ("POST", "/openai/files", batches.upload),
        ("GET", "/openai/files/[^/]+/content", batches.content),
        ("POST", "/openai/batches", batches.create),
        ("GET", "/openai/batches/[^/]+", batches.look),
    ]:
        batches.server.route(method, path, answer)
    by = {"base_url": batches.server.url.removesuffix("/v1"), "api_version": "2024-10-21"}
    assert outcomes(play(build(batches, by=by))) == EXPECTED
    assert {request["url"] for request in batches.requests(0)} == {"/chat/completions"}


def test_a_judge_that_cannot_be_read_is_found_out_by_a_small_batch(batches: Batches) -> None:
    batches.server.answer = lambda call: completion("A is better.")
    with pytest.raises(DensePathError, match="none of the 8 verdicts on the canaries could be read"):
        asyncio.run(try_judge(build(batches), PAIRS[1:], settled(canaries=2)))
    # Of an answer against itself both orders are one request.
    assert [len(batches.requests(i)) for i in range(len(batches.batches))] == [6]


def test_no_failure_shows_the_key(batches: Batches) -> None:
    batches.server.route("POST", "/v1/files", lambda call: refused(400, f"not with {KEY}"))
    with pytest.raises(DensePathError, match="not with <key>") as caught:
        play(build(batches))
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None
