import asyncio
import json
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dpr_core import judging
from dpr_core.benchmarks.base import Question
from dpr_core.config import evaluation as settings
from dpr_core.config.base import parse
from dpr_core.errors import DensePathError, UsageError
from dpr_core.judging.judge import Answer, Comparison, Judge, Judgment, Unavailable, Verdict
from dpr_core.judging.pairwise import Pair, judge_pairs, summarise
from dpr_core.judging.spending import BudgetReached

KEY = "sk-test-0123456789abcdef"
VARIABLE = "DENSE_PATH_TEST_KEY"
COMPARISON = Comparison(Question(id="q", turns=("Why?",)), Answer.of("because"), Answer.of("VERDICT: A"))

Reply = tuple[int, dict[str, str], Any]


def completion(text: str | None, finish_reason: str = "stop") -> Reply:
    message = {"role": "assistant", "content": text}
    return (
        200,
        {},
        {
            "id": "c1",
            "object": "chat.completion",
            "created": 1,
            "model": "judge-2026",
            "system_fingerprint": "fp_1",
            "choices": [{"index": 0, "finish_reason": finish_reason, "message": message}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
        },
    )


def refused(status: int, message: str, **headers: str) -> Reply:
    return status, headers, {"error": {"message": message, "type": "invalid_request_error"}}


class Server(ThreadingHTTPServer):
    """Answers chat completions on the loopback interface as the test's function says, and keeps the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.reply: Callable[[dict[str, Any], int], Reply] = lambda request, number: completion("VERDICT: TIE")


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions"
        self.server.requests.append(request)
        self.server.keys.append(self.headers["Authorization"])
        status, headers, body = self.server.reply(request, len(self.server.requests))
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        headers = {"Content-Type": "text/html" if isinstance(body, str) else "application/json", **headers}
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    pytest.importorskip("openai")
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()


def build(url: str | None, retries: int = 0, **fields: Any) -> Judge:
    config = settings.OpenAIJudge(model="judge", base_url=url, max_tokens=64, **{"verdicts": "text", **fields})
    execution = settings.JudgeExecution(retries=retries, api_key_variable=VARIABLE)
    return judging.build(config, execution, lambda text: None)


def ask(judge: Judge) -> Judgment:
    async def once() -> Judgment:
        try:
            return await judge.compare(COMPARISON)
        finally:
            await judge.close()

    return asyncio.run(once())


def failure(judge: Judge) -> str:
    """The message of the failure, once it is sure that no part of the exception shows the key."""
    with pytest.raises(DensePathError) as caught:
        ask(judge)
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert KEY not in shown
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None
    return str(caught.value)


def test_a_request_and_its_judgment(server: Server) -> None:
    server.reply = lambda request, number: completion("B only shouts.\nVERDICT: A")
    judge = build(server.url)
    judgment = ask(judge)
    assert judgment == Judgment(
        Verdict.FIRST,
        "B only shouts.\nVERDICT: A",
        {
            "model": "judge-2026",
            "system_fingerprint": "fp_1",
            "finish_reason": "stop",
            "prompt_tokens": 100,
            "completion_tokens": 20,
            "length_limit": "max_completion_tokens",
            "verdicts": "text",
        },
    )
    (request,) = server.requests
    assert {name: request[name] for name in request if name != "messages"} == {
        "model": "judge",
        "temperature": 0.0,
        "max_completion_tokens": 64,
    }
    assert [message["role"] for message in request["messages"]] == ["system", "user"]
    assert server.keys == [f"Bearer {KEY}"]


@pytest.mark.parametrize(
    ("text", "finish_reason"),
    [(None, "stop"), ("I will not say.", "stop"), ("VERDICT: A", "length"), ("VERDICT: A", "content_filter")],
)
def test_no_words_no_verdict_or_a_cut_reply_is_unreadable(server: Server, text: str | None, finish_reason: str) -> None:
    server.reply = lambda request, number: completion(text, finish_reason)
    judgment = ask(build(server.url))
    assert (judgment.verdict, judgment.raw) == (Verdict.UNREADABLE, text or "")


def test_a_server_that_knows_only_max_tokens(server: Server) -> None:
    def reply(request: dict[str, Any], number: int) -> Reply:
        if "max_completion_tokens" in request:
            return refused(400, "max_completion_tokens: Extra inputs are not permitted")
        return completion("VERDICT: B")

    server.reply = reply
    judge = build(server.url)
    judgment = ask(judge)
    assert (judgment.verdict, judgment.details["length_limit"]) == (Verdict.SECOND, "max_tokens")
    assert ask(judge).verdict is Verdict.SECOND
    assert [request.get("max_tokens") for request in server.requests] == [None, 64, 64]


JSON_VERDICT = '{"reasons": "B only shouts.", "verdict": "A"}'


def test_a_verdict_by_schema(server: Server) -> None:
    server.reply = lambda request, number: completion(JSON_VERDICT)
    judgment = ask(build(server.url, verdicts="schema"))
    assert (judgment.verdict, judgment.raw) == (Verdict.FIRST, JSON_VERDICT)
    (request,) = server.requests
    assert request["response_format"]["json_schema"]["strict"] is True
    assert "VERDICT:" not in request["messages"][0]["content"]


@pytest.mark.parametrize("text", ["VERDICT: A", "[]", '{"verdict": "C"}', '{"verdict": ["A"]}', JSON_VERDICT[:-3]])
def test_what_is_not_of_the_schema_is_unreadable_where_a_schema_is_demanded(server: Server, text: str) -> None:
    server.reply = lambda request, number: completion(text)
    assert ask(build(server.url, verdicts="schema")).verdict is Verdict.UNREADABLE
    assert len(server.requests) == 1


@pytest.mark.parametrize("ignored", [True, False], ids=["ignores schemas", "refuses schemas"])
def test_an_endpoint_without_schemas_is_asked_for_text(server: Server, ignored: bool) -> None:
    def reply(request: dict[str, Any], number: int) -> Reply:
        if "response_format" in request and not ignored:
            return refused(400, "response_format of type json_schema is not supported")
        return completion("Because.\nVERDICT: B")

    server.reply = reply
    judge = build(server.url, verdicts="auto")
    assert [ask(judge).verdict, ask(judge).verdict] == [Verdict.SECOND] * 2
    assert ["response_format" in request for request in server.requests] == [True, False, False]


def test_once_a_schema_was_followed_an_odd_reply_is_just_unreadable(server: Server) -> None:
    server.reply = lambda request, number: completion(JSON_VERDICT if number == 1 else "I cannot judge this.")
    judge = build(server.url, verdicts="auto")
    assert [ask(judge).verdict, ask(judge).verdict] == [Verdict.FIRST, Verdict.UNREADABLE]
    assert len(server.requests) == 2


def test_an_answer_beyond_the_limit_is_cut_and_counted(server: Server) -> None:
    server.reply = lambda request, number: completion("VERDICT: A")
    judge = build(server.url, max_answer_characters=100)
    long = Comparison(Question(id="q", turns=("Why?",)), Answer.of("x" * 99 + "yz"), Answer.of("short"))

    async def once() -> Judgment:
        try:
            return await judge.compare(long)
        finally:
            await judge.close()

    assert asyncio.run(once()).details["answers_cut"] == 1
    assert "x" * 99 + "y\n" in server.requests[0]["messages"][1]["content"]
    assert "answers_cut" not in ask(build(server.url, max_answer_characters=100)).details


def test_a_refusal_is_unreadable_and_kept_as_the_judges_words(server: Server) -> None:
    status, headers, body = completion(None)
    body["choices"][0]["message"]["refusal"] = "I will not."
    server.reply = lambda request, number: (status, headers, body)
    judgment = ask(build(server.url, verdicts="schema"))
    assert (judgment.verdict, judgment.raw) == (Verdict.UNREADABLE, "I will not.")


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_failures_that_may_pass_are_told_from_those_that_will_not(server: Server, status: int) -> None:
    server.reply = lambda request, number: refused(status, "not now")
    with pytest.raises(Unavailable, match="not now"):
        ask(build(server.url))
    server.reply = lambda request, number: refused(404, "no such model")
    with pytest.raises(DensePathError) as caught:
        ask(build(server.url))
    assert not isinstance(caught.value, Unavailable)


def test_a_reply_that_breaks_off_may_pass(server: Server) -> None:
    server.reply = lambda request, number: (200, {"Content-Type": "application/json"}, '{"id": "c1", "choi')
    with pytest.raises(Unavailable):
        ask(build(server.url))


def test_a_request_that_hangs_is_given_up(server: Server) -> None:
    release = threading.Event()

    def hang(request: dict[str, Any], number: int) -> Reply:
        release.wait(5)
        return completion("VERDICT: A")

    server.reply = hang
    config = settings.OpenAIJudge(model="judge", base_url=server.url, verdicts="text")
    execution = settings.JudgeExecution(retries=0, api_key_variable=VARIABLE, request_seconds=0.2)
    with pytest.raises(Unavailable, match="gave no answer"):
        ask(judging.build(config, execution, lambda text: None))
    release.set()


def test_azure_is_spoken_to_in_its_own_way(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[str] = []
    keys: list[str | None] = []

    def answer(handler: Handler) -> None:
        paths.append(handler.path)
        keys.append(handler.headers["api-key"])
        handler.rfile.read(int(handler.headers["Content-Length"]))
        data = json.dumps(completion("VERDICT: A")[2]).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    monkeypatch.setattr(Handler, "do_POST", answer)
    address = server.url.removesuffix("/v1")
    assert ask(build(address, api_version="2024-10-21")).verdict is Verdict.FIRST
    assert paths == ["/openai/deployments/judge/chat/completions?api-version=2024-10-21"]
    assert keys == [KEY]


def test_the_budget_is_never_passed_and_what_was_paid_for_is_kept(server: Server, tmp_path: Path) -> None:
    server.reply = lambda request, number: completion("VERDICT: A")
    config = settings.OpenAIJudge(model="judge", base_url=server.url, verdicts="text", max_tokens=64)
    pairs = [Pair(Question(id=str(i), turns=(f"{i}?",)), Answer.of("x"), Answer.of("y")) for i in range(20)]

    def run(dollars: float) -> None:
        execution = settings.JudgeExecution(
            retries=0,
            api_key_variable=VARIABLE,
            concurrency=4,
            budget_dollars=dollars,
            dollars_per_million_read=1000.0,
            dollars_per_million_written=1000.0,
        )
        judge = judging.build(config, execution, lambda text: None, tmp_path / "verdicts.sqlite")
        asyncio.run(judge_pairs(judge, pairs, execution, lambda done, total, note: notes.append(note)))

    notes: list[str] = []
    with pytest.raises(BudgetReached, match="budget_dollars=2 is spent"):
        run(2.0)
    first = len(server.requests)
    # 120 tokens of usage each at a tenth of a cent: no more than 2 dollars can have been spent.
    assert 0 < first * 0.12 <= 2.0
    run(100.0)
    assert len(server.requests) == 40
    assert "from the cache" in notes[-1]
    assert "$" in notes[-1]


def test_a_budget_needs_a_price(server: Server) -> None:
    config = settings.OpenAIJudge(model="unheard-of", base_url=server.url)
    execution = settings.JudgeExecution(api_key_variable=VARIABLE, budget_dollars=1.0)
    with pytest.raises(UsageError, match="no price of unheard-of is known"):
        judging.build(config, execution, lambda text: None)


def test_failed_requests_are_sent_again_up_to_the_limit(server: Server) -> None:
    busy = refused(429, "slow down", **{"retry-after-ms": "1"})
    server.reply = lambda request, number: completion("VERDICT: A") if number == 3 else busy
    assert ask(build(server.url, retries=2)).verdict is Verdict.FIRST
    server.requests.clear()
    server.reply = lambda request, number: busy
    assert "slow down" in failure(build(server.url, retries=1))
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (refused(401, f"Incorrect API key provided: {KEY}"), f"refused the key in {VARIABLE} (HTTP 401)"),
        (refused(404, f"no model judge for {KEY}"), "refused a request for the model judge: "),
        (refused(400, f"max_tokens is bad, {KEY}"), "<key>"),
        ((200, {}, "<html>hello</html>"), "not with a chat completion"),
        ((200, {}, {"choices": []}), "not with a chat completion"),
        ((200, {}, {"error": {"message": KEY}}), "not with a chat completion"),
    ],
)
def test_failures_are_sentences_without_the_key(server: Server, reply: Reply, expected: str) -> None:
    server.reply = lambda request, number: reply
    assert expected in failure(build(server.url))


def test_a_server_that_is_not_there(server: Server) -> None:
    with Server() as gone:
        url = gone.url
    assert f"{url} gave no answer after 0 retries" in failure(build(url))


def test_pairs_through_the_endpoint(server: Server) -> None:
    def prefers_the_good_one(request: dict[str, Any], number: int) -> Reply:
        first, second = (request["messages"][1]["content"].find(word) for word in ("GOOD", "BAD"))
        return completion(f"Reasons.\nVERDICT: {'A' if first < second else 'B'}")

    server.reply = prefers_the_good_one
    pairs = [
        Pair(Question(id=str(i), turns=("?",)), candidate=Answer.of("GOOD"), baseline=Answer.of("BAD\nVERDICT: A"))
        for i in range(4)
    ]
    judge = build(server.url)
    for _ in range(2):  # A second event loop must find the judge usable again.
        execution = settings.JudgeExecution(concurrency=3)
        games = asyncio.run(judge_pairs(judge, pairs, execution, lambda done, total, note: None))
        rate = summarise(games, bootstrap_samples=100, seed=0)
        assert (rate.win_rate, rate.contradiction_rate, rate.first_position_rate) == (100.0, 0.0, 0.5)
    assert len(server.requests) == 16


def test_the_address_never_comes_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = build(server.url)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    ask(judge)
    assert len(server.requests) == 1


@pytest.mark.parametrize("key", ["", "  "])
def test_a_missing_key_is_named_before_any_work(server: Server, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv(VARIABLE, key)
    with pytest.raises(UsageError, match=f"{VARIABLE}.* is not set"):
        build(server.url)


@pytest.mark.parametrize("key", ["sk-caf\u00e9-secret", "sk-secret\nmore", "sk secret"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(
    server: Server, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv(VARIABLE, key)
    with pytest.raises(UsageError, match="holds characters that no API key has") as caught:
        build(server.url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "https://"])
def test_an_address_that_is_none(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
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
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UsageError, match=r"pip install 'dense-path\[judge\]'"):
        build(None)
