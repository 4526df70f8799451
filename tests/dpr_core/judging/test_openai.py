import asyncio
import json
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from dpr_core import judging
from dpr_core.benchmarks.base import Question
from dpr_core.config import evaluation as settings
from dpr_core.config.base import parse
from dpr_core.errors import DensePathError, UsageError
from dpr_core.judging.judge import Answer, Comparison, Judge, Judgment, Verdict
from dpr_core.judging.pairwise import Pair, judge_pairs, summarise

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
    config = settings.OpenAIJudge(model="judge", base_url=url, max_tokens=64, **fields)
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
        games = asyncio.run(judge_pairs(judge, pairs, execution, lambda done, total: None))
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
