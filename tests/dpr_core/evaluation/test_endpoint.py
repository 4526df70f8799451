"""Addresses, keys, limits and failures of an endpoint, through the real client."""

import asyncio
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dpr_core.config import evaluation as settings
from dpr_core.config.base import parse
from dpr_core.errors import DensePathError, UsageError
from dpr_core.evaluation.ask import Unreadable
from dpr_core.evaluation.budget import BudgetReachedError
from dpr_core.evaluation.endpoint import Endpoint, UnavailableError, UnreachableError
from dpr_core.evaluation.judge import build_judge, judged_by, judged_by_warnings, probe_each
from dpr_core.evaluation.pairwise import Answer, Pair, Verdict, judge_pairs
from dpr_core.evaluation.questions import Question
from tests.dpr_core.evaluation.asking import ask, build, failure
from tests.loopback import KEY, Call, Loopback, Reply, completion, refused, serving


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_failures_that_may_pass_are_told_from_those_that_will_not(loopback: Loopback, status: int) -> None:
    loopback.answer = lambda call: refused(status, "not now")
    with pytest.raises(UnavailableError, match="not now"):
        ask(build(loopback.url))
    loopback.answer = lambda call: refused(404, "no such model")
    with pytest.raises(DensePathError) as caught:
        ask(build(loopback.url))
    assert not isinstance(caught.value, UnavailableError)


def test_a_reply_that_breaks_off_may_pass(loopback: Loopback) -> None:
    loopback.answer = lambda call: Reply('{"id": "c1", "choi', headers={"Content-Type": "application/json"})
    with pytest.raises(UnavailableError):
        ask(build(loopback.url))


def test_a_request_that_hangs_is_given_up(loopback: Loopback) -> None:
    loopback.answer = lambda call: replace(completion("VERDICT: A"), after=1.0)
    config = settings.OpenAIJudgeConfig(model="judge", base_url=loopback.url, verdicts="text")
    execution = settings.JudgeExecutionConfig(retries=0, api_key_variable="OPENAI_API_KEY", request_seconds=0.2)
    with pytest.raises(UnavailableError, match="gave no answer"):
        ask(build_judge(config, execution, lambda question, text: None))


def test_azure_is_spoken_to_in_its_own_way(loopback: Loopback) -> None:
    loopback.answer = lambda call: completion("VERDICT: A")
    address = loopback.url.removesuffix("/v1")
    assert ask(build(address, api_version="2024-10-21")).verdict is Verdict.FIRST
    (call,) = loopback.calls
    assert (call.path, call.query) == ("/openai/deployments/judge/chat/completions", "api-version=2024-10-21")
    assert call.headers["api-key"] == KEY


def test_the_budget_is_never_passed_and_what_was_paid_for_is_kept(loopback: Loopback, tmp_path: Path) -> None:
    loopback.answer = lambda call: completion("VERDICT: A")
    config = settings.OpenAIJudgeConfig(model="judge", base_url=loopback.url, verdicts="text", max_tokens=64)
    pairs = [Pair(Question(id=str(i), turns=(f"{i}?",)), Answer.of("x"), Answer.of("y")) for i in range(20)]

    def run(dollars: float) -> None:
        execution = settings.JudgeExecutionConfig(
            retries=0,
            concurrency=4,
            budget_dollars=dollars,
            dollars_per_million_read=1000.0,
            dollars_per_million_written=1000.0,
        )
        judge = build_judge(config, execution, lambda question, text: None, tmp_path / "verdicts.sqlite")
        asyncio.run(judge_pairs(judge, pairs, execution, lambda done, total, note: notes.append(note)))

    notes: list[str] = []
    with pytest.raises(BudgetReachedError, match="budget_dollars=2 is spent"):
        run(2.0)
    first = len(loopback.calls)
    # 120 tokens of usage each at a tenth of a cent: no more than 2 dollars can have been spent.
    assert 0 < first * 0.12 <= 2.0
    run(100.0)
    assert len(loopback.calls) == 40
    assert "from the cache" in notes[-1]
    assert "$" in notes[-1]


def test_a_budget_needs_a_price(loopback: Loopback) -> None:
    config = settings.OpenAIJudgeConfig(model="unheard-of", base_url=loopback.url)
    execution = settings.JudgeExecutionConfig(api_key_variable="OPENAI_API_KEY", budget_dollars=1.0)
    with pytest.raises(UsageError, match="no price of unheard-of is known"):
        build_judge(config, execution, lambda question, text: None)


def test_failed_requests_are_sent_again_up_to_the_limit(loopback: Loopback) -> None:
    busy = refused(429, "slow down", **{"retry-after-ms": "1"})
    loopback.answer = lambda call: completion("VERDICT: A") if len(loopback.calls) == 3 else busy
    assert ask(build(loopback.url, retries=2)).verdict is Verdict.FIRST
    loopback.calls.clear()
    loopback.answer = lambda call: busy
    assert "slow down" in failure(build(loopback.url, retries=1))
    assert len(loopback.calls) == 2


PAGE = "<html><body>" + "hello " * 1000


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (refused(401, f"Incorrect API key provided: {KEY}"), "refused the key in OPENAI_API_KEY (HTTP 401)"),
        (refused(404, f"no model judge for {KEY}"), "refused a request for the model judge: "),
        (refused(404, "no model judge"), "check judge.by.model, and judge.by.base_url, which often ends in /v1"),
        (Reply(PAGE, 404), "HTTP 404 with a page of HTML; check judge.by.model"),
        (Reply(PAGE, 502), "HTTP 502 with a page of HTML"),
        (refused(404, f"max_tokens is bad, {KEY}"), "<key>"),
        (refused(400, "API key not valid."), "API key not valid."),
        (refused(402, "Insufficient balance"), "nothing left to spend"),
        (refused(429, "You exceeded your quota", "insufficient_quota"), "the account of this key has nothing left"),
        (Reply(PAGE), "not with a chat completion"),
        (Reply({"choices": []}), "not with a chat completion"),
        (Reply({"choices": [{}]}), "not with a chat completion"),
        (Reply({"choices": {"message": "x"}}), "not with a chat completion"),
        (Reply({"error": {"message": KEY}}), "not with a chat completion"),
    ],
)
def test_failures_are_sentences_without_the_key(loopback: Loopback, reply: Reply, expected: str) -> None:
    loopback.answer = lambda call: reply
    said = failure(build(loopback.url))
    assert expected in said
    assert "hello" not in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "This model's maximum context length is 8192 tokens."),
        (400, "The response was filtered due to the prompt triggering content management policy."),
        (403, "Your input was flagged by moderation."),
        (400, "Refused: 'How do I renew an API key?'"),
        (413, "Request too large"),
        (422, "string too long"),
    ],
)
def test_one_refused_request_is_one_game_without_a_verdict(loopback: Loopback, status: int, message: str) -> None:
    def answer(call: Call) -> Reply:
        refuse = "question 3?" in str(call.json)
        return refused(status, f"{message} {KEY}") if refuse else completion("VERDICT: A")

    loopback.answer = answer
    pairs = [Pair(Question(str(i), (f"question {i}?",)), Answer.of("x"), Answer.of("y")) for i in range(5)]
    games = asyncio.run(judge_pairs(build(loopback.url), pairs, settings.JudgeExecutionConfig(), lambda *each: None))
    assert [game.question_id for game in games if game.value is None] == ["3", "3"]
    told = Unreadable.among(games, "verdicts")
    assert (told.refused, len(loopback.calls)) == (2, 10)
    with pytest.raises(DensePathError, match="2 of 10 verdicts .* 2 were refused by the endpoint") as caught:
        told.check(settings.JudgeExecutionConfig(), "nowhere")
    assert message in str(caught.value)
    assert KEY not in str(caught.value) + str(games)
    told.check(settings.JudgeExecutionConfig(max_unreadable_share=0.2), "nowhere")


def test_a_reasoning_model_is_asked_in_its_own_way(loopback: Loopback) -> None:
    def answer(call: Call) -> Reply:
        if "temperature" in call.json:
            return refused(400, "Unsupported value: 'temperature' does not support 0 with this model.")
        said = completion("VERDICT: A").body
        assert isinstance(said, dict)
        usage = {"prompt_tokens": 100, "completion_tokens": 1020, "total_tokens": 1120}
        return Reply({**said, "usage": {**usage, "completion_tokens_details": {"reasoning_tokens": 1000}}})

    loopback.answer = answer
    more = {"reasoning_effort": "low", "extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}
    judge = build(loopback.url, **more)
    judgments = [ask(judge), ask(judge)]
    assert {(each.details["reasoning_tokens"], each.details["temperature"]) for each in judgments} == {
        (1000, "the model's own")
    }
    assert ["temperature" in request for request in loopback.requests] == [True, False, False]
    assert loopback.requests[-1]["reasoning_effort"] == "low"
    assert loopback.requests[-1]["chat_template_kwargs"] == {"enable_thinking": True}
    served = judged_by(settings.OpenAIJudgeConfig(), [each.details for each in judgments])
    assert "The model takes no temperature: 2 replies are at its own, not at 0.0." in judged_by_warnings(served)
    loopback.calls.clear()
    ask(build(loopback.url, temperature=None))
    assert "temperature" not in loopback.requests[0]


def test_a_refusal_that_only_names_the_limit_changes_no_other_request(loopback: Loopback) -> None:
    loopback.answer = lambda call: refused(400, "max_completion_tokens does not fit beside 9000 tokens")
    judge = build(loopback.url)
    assert ask(judge).value is None
    loopback.calls.clear()
    loopback.answer = lambda call: completion("VERDICT: A")
    ask(judge)
    assert [request.get("max_completion_tokens") for request in loopback.requests] == [64]


def test_what_all_thinking_was_spent_on_names_the_limit(loopback: Loopback) -> None:
    message = "Could not finish the message because max_tokens or model output limit was reached."
    loopback.answer = lambda call: refused(400, message)
    assert str(ask(build(loopback.url)).details["refused"]).endswith(
        "raise judge.by.max_tokens, in which thinking counts"
    )
    # An endpoint that says so is there.
    probe_each([(settings.OpenAIJudgeConfig(base_url=loopback.url), settings.JudgeExecutionConfig())])
    loopback.answer = lambda call: refused(400, "no")
    with pytest.raises(DensePathError, match="refused a request"):
        probe_each([(settings.OpenAIJudgeConfig(base_url=loopback.url), settings.JudgeExecutionConfig())])


@pytest.mark.parametrize(
    ("extra", "said"), [({"temperature": 1}, "temperature is set by the judge itself"), ({"seed": object()}, "JSON")]
)
def test_fields_that_no_request_may_have_besides(extra: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse(settings.JudgeConfig, {"by": {"type": "openai", "extra_body": extra}}, "judge")


@pytest.mark.parametrize("place", ["content", "model", "system_fingerprint"])
def test_a_reply_that_repeats_the_key_is_refused(loopback: Loopback, place: str) -> None:
    said = completion(f"Your key is {KEY}.\nVERDICT: A" if place == "content" else "VERDICT: A").body
    assert isinstance(said, dict)
    loopback.answer = lambda call: Reply(said if place == "content" else {**said, place: f"it is {KEY}"})
    told = failure(build(loopback.url))
    assert "repeats the key in OPENAI_API_KEY" in told
    assert KEY not in told


@pytest.mark.parametrize("key", ["any", "EMPTY", "none", "not-needed"])
def test_a_word_in_place_of_a_key_changes_no_reply(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    text = f"Is {key} of them right, as in many a case? {key}.\nVERDICT: A"
    said = completion(text).body
    assert isinstance(said, dict)
    loopback.answer = lambda call: Reply({**said, "model": f"{key}-judge", "system_fingerprint": f"fp-{key}"})
    judgment = ask(build(loopback.url))
    assert judgment.raw == text
    assert (judgment.details["model"], judgment.details["system_fingerprint"]) == (f"{key}-judge", f"fp-{key}")


def test_a_reply_whose_parts_are_of_other_types_is_taken_for_what_it_is(loopback: Loopback) -> None:
    said = completion("VERDICT: A").body
    assert isinstance(said, dict)
    loopback.answer = lambda call: Reply({**said, "system_fingerprint": 5})
    assert ask(build(loopback.url)).verdict is Verdict.FIRST
    for usage in ("many", {"prompt_tokens": 10**25, "completion_tokens_details": {"reasoning_tokens": "many"}}):
        loopback.answer = lambda call, usage=usage: Reply({**said, "usage": usage})  # type: ignore[misc]
        assert not {"prompt_tokens", "reasoning_tokens"} & ask(build(loopback.url)).details.keys()
    parts = {"role": "assistant", "content": [{"type": "text", "text": "VERDICT: A"}]}
    loopback.answer = lambda call: Reply({**said, "choices": [{**said["choices"][0], "message": parts}]})
    assert ask(build(loopback.url)).raw == ""


def test_what_is_said_of_an_unreadable_reply_is_without_the_key(loopback: Loopback) -> None:
    config = settings.OpenAIJudgeConfig(model="judge", base_url=loopback.url)
    endpoint = Endpoint(config, settings.JudgeExecutionConfig(api_key_variable="OPENAI_API_KEY"))
    told = str(endpoint.unreadable(ValueError(f"Expecting value near {KEY}")))
    assert told == f"{loopback.url} sent a reply that could not be read: Expecting value near <key>"


def test_what_was_not_a_completion_is_no_answered_request(loopback: Loopback) -> None:
    loopback.answer = lambda call: Reply(PAGE)
    judge = build(loopback.url)
    failure(judge)
    assert judge.status() == ""


def test_no_money_is_no_overload(loopback: Loopback) -> None:
    loopback.answer = lambda call: refused(429, "You exceeded your quota", "insufficient_quota")
    with pytest.raises(DensePathError) as caught:
        ask(build(loopback.url))
    assert not isinstance(caught.value, UnavailableError)


def test_a_server_that_is_not_there(loopback: Loopback) -> None:
    with serving() as gone:
        url = gone.url
    assert f"{url} cannot be reached: Connection error. All connection attempts failed" in failure(build(url))
    with pytest.raises(UnreachableError):
        ask(build("http://nowhere.invalid/v1", retries=1))


def test_the_address_never_comes_from_the_environment(loopback: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = build(loopback.url)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    ask(judge)
    assert len(loopback.calls) == 1


def test_a_request_waits_as_long_as_the_endpoint_says(loopback: Loopback) -> None:
    busy = refused(429, "slow down", **{"retry-after": "2"})
    loopback.answer = lambda call: completion("VERDICT: A") if len(loopback.calls) == 2 else busy
    started = time.monotonic()
    assert ask(build(loopback.url, retries=1)).verdict is Verdict.FIRST
    # Left to itself, the client would have waited half a second.
    assert time.monotonic() - started >= 2.0


@pytest.mark.parametrize("key", ["", "  "])
def test_a_missing_key_is_named_before_any_work(loopback: Loopback, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UsageError, match="OPENAI_API_KEY.* is not set"):
        build(loopback.url)


@pytest.mark.parametrize("key", ["sk-caf\u00e9-secret", "sk-secret\nmore", "sk secret"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(
    loopback: Loopback, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UsageError, match="holds characters that no API key has") as caught:
        build(loopback.url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "https://"])
def test_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(UsageError, match=r"judge\.by\.base_url"):
        build(url)


@pytest.mark.parametrize(
    "values",
    [
        {"by": {"type": "openai", "base_url": "https://user:sesame@host/v1"}},
        {"by": {"type": "openai", "base_url": "https://host/v1?key=sesame"}},
        {"execution": {"api_key_variable": "sk-sesame"}},
    ],
)
def test_a_secret_in_the_settings_is_refused_before_it_is_stored_and_never_repeated(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        parse(settings.JudgeConfig, values, "judge")
    assert "sesame" not in str(caught.value)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UsageError, match=r"pip install 'dense-path\[judge\]'"):
        build(None)
