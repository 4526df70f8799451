"""A server on the loopback interface that speaks the OpenAI API: replies are scripted, faults are injected.

It stands in for a language model in tests, without a key and without a network. By hand, with a judge that prefers the
longer answer:

    python tests/loopback.py --judge longer --faults 0.3

prints an address for `--set judge.by.base_url=`; any key will do.
"""

import argparse
import hashlib
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "judge-2026"

KEY = "sk-test-0123456789abcdef"
"""What tests use as a key; any other does as well."""


@dataclass(frozen=True)
class Call:
    """A request as it arrived."""

    method: str
    path: str
    """Without what follows a question mark."""
    query: str
    headers: Mapping[str, str]
    """By names in lower case."""
    data: bytes

    @cached_property
    def json(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.data)
        return document


@dataclass(frozen=True)
class Reply:
    """What is sent back: a document as JSON, or a text as it is."""

    body: Mapping[str, Any] | str
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    after: float = 0.0
    """Seconds before it is sent."""
    length: int | None = None
    """So many bytes only, with a header that promises them all; 0 drops the connection without a word."""


Answering = Callable[[Call], Reply]


def completion(text: str | None, finish_reason: str = "stop", refusal: str | None = None) -> Reply:
    """A chat completion that says this."""
    message = {"role": "assistant", "content": text} | ({"refusal": refusal} if refusal is not None else {})
    return Reply(
        {
            "id": "c1",
            "object": "chat.completion",
            "created": 1,
            "model": MODEL,
            "system_fingerprint": "fp_1",
            "choices": [{"index": 0, "finish_reason": finish_reason, "message": message}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
        }
    )


def refused(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    """An error as the API sends it."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return Reply({"error": error}, status, headers)


class Loopback(ThreadingHTTPServer):
    """Serves in threads of its own and keeps what was asked. Use `serving` to start one."""

    request_queue_size = 256
    daemon_threads = True

    def __init__(self, answer: Answering) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.calls: list[Call] = []
        """Every call for a chat completion."""
        self.answer = answer
        """What is said to a chat completion; a test may exchange it at any time."""
        self.models = [MODEL]
        self.routes: list[tuple[str, str, Answering]] = [
            ("POST", r".*/chat/completions", self.complete),
            ("GET", r"/v1/models", self.list_models),
        ]

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The bodies of all calls for a chat completion."""
        return [call.json for call in self.calls]

    def route(self, method: str, pattern: str, answer: Answering) -> None:
        """Serve the paths that `pattern` matches as a whole; what is added last goes first."""
        self.routes.insert(0, (method, pattern, answer))

    def reply(self, call: Call) -> Reply:
        for method, pattern, answer in self.routes:
            if method == call.method and re.fullmatch(pattern, call.path):
                return answer(call)
        return refused(404, f"Invalid URL ({call.method} {call.path})")

    def complete(self, call: Call) -> Reply:
        self.calls.append(call)
        return self.answer(call)

    def list_models(self, call: Call) -> Reply:
        models = [{"id": name, "object": "model", "created": 1, "owned_by": "tests"} for name in self.models]
        return Reply({"object": "list", "data": models})

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has given up is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Loopback
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        path, _, query = self.path.partition("?")
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self.server.reply(Call(self.command, path, query, headers, data))
        if reply.after:
            time.sleep(reply.after)
        is_text = isinstance(reply.body, str)
        body = (reply.body if is_text else json.dumps(reply.body)).encode()
        self.close_connection = reply.length is not None
        if reply.length == 0:
            return
        self.send_response(reply.status)
        kind = "text/html" if is_text else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: reply.length])

    do_GET = do_PUT = do_DELETE = do_POST

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@contextmanager
def serving(answer: Answering | None = None) -> Iterator[Loopback]:
    """A server for the duration of a block; without `answer`, everything is a tie."""
    with Loopback(answer or judging(lambda shown: "TIE")) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


PART = re.compile(
    r"\[BEGIN (?P<title>[^\]\n]+) (?P<mark>[0-9a-f]{16})\]\n(?P<text>.*?)\n\[END (?P=title) (?P=mark)\]", re.S
)


@dataclass(frozen=True)
class Shown:
    """A request as a judge reads it who keeps to the marks: the parts, and all the words that stand in none."""

    mark: str
    parts: dict[str, str]
    outside: str
    as_json: bool

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> "Shown":
        system, user = (message["content"] for message in request["messages"])
        (mark,) = set(re.findall(r"where MARK is ([0-9a-f]{16}) in", system))
        found = [part for part in PART.finditer(user) if part["mark"] == mark]
        outside = system + "".join(user[a:b] for a, b in _between(user, [part.span() for part in found]))
        return cls(mark, {part["title"]: part["text"] for part in found}, outside, "response_format" in request)

    @property
    def answers(self) -> tuple[str, str]:
        """All turns of answer A, and all of answer B."""
        both = ("\n".join(text for title, text in self.parts.items() if title.startswith(f"answer {x}")) for x in "AB")
        first, second = both
        return first, second


def _between(text: str, spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    ends = [0, *(end for _, end in spans)]
    starts = [*(start for start, _ in spans), len(text)]
    yield from zip(ends, starts, strict=True)


def judging(decide: Callable[[Shown], str]) -> Answering:
    """A judge that says A, B or TIE, as JSON where a schema is asked for and as a last line elsewhere."""

    def answer(call: Call) -> Reply:
        if "MARK" not in str(call.json["messages"]):
            return completion("Yes.")
        shown = Shown.of(call.json)
        verdict = decide(shown)
        said = json.dumps({"reasons": "So it is.", "verdict": verdict}) if shown.as_json else f"So.\nVERDICT: {verdict}"
        return completion(said)

    return answer


def by_hash(shown: Shown) -> str:
    """No reason at all, but always the same answer of two, in whichever order they stand."""
    first, second = (hashlib.sha256(answer.encode()).hexdigest() for answer in shown.answers)
    return "TIE" if first == second else "A" if first < second else "B"


def longer(shown: Shown) -> str:
    first, second = map(len, shown.answers)
    return "TIE" if first == second else "A" if first > second else "B"


JUDGES: dict[str, Callable[[Shown], str]] = {
    "hash": by_hash,
    "longer": longer,
    "first": lambda shown: "A",
    "tie": lambda shown: "TIE",
}

PASSING = ("429", "429 retry-after", "500", "hang", "drop", "break", "cut", "html")
"""Requests that fail."""

UNREADABLE = ("refusal", "filter", "length", "schema")
"""Requests that are answered, and paid for, without a verdict."""


@dataclass
class Faults:
    """Some of all replies become faults: which, is a matter of the seed, of what is asked and of how often."""

    answer: Answering
    share: float
    kinds: tuple[str, ...] = PASSING + UNREADABLE
    seed: int = 0
    hang_seconds: float = 1.5
    injected: Counter[str] = field(default_factory=Counter)
    _asked: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, call: Call) -> Reply:
        # The mark, 16 digits, is another one each time that the same is asked.
        asked = hashlib.sha256(re.sub(rb"[0-9a-f]{16}", b"", call.data)).hexdigest()
        with self._lock:
            self._asked[asked] += 1
            draw = random.Random(f"{self.seed} {asked} {self._asked[asked]}")
            if draw.random() >= self.share:
                return self.answer(call)
            kind = draw.choice(self.kinds)
            self.injected[kind] += 1
        return self.fault(kind, call)

    def fault(self, kind: str, call: Call) -> Reply:
        match kind:
            case "429":
                return refused(429, "busy")
            case "429 retry-after":
                return refused(429, "busy", **{"retry-after-ms": "10"})
            case "500":
                return refused(500, "something broke")
            case "hang":
                return replace(self.answer(call), after=self.hang_seconds)
            case "drop":
                return replace(self.answer(call), length=0)
            case "break":
                return replace(self.answer(call), length=40)
            case "cut":
                whole = json.dumps(self.answer(call).body)
                return Reply(whole[: len(whole) // 2], headers={"Content-Type": "application/json"})
            case "html":
                return Reply("<html><body>Bad gateway</body></html>", 502)
            case "refusal":
                return completion(None, refusal="I will not judge this.")
            case "filter":
                return completion("", "content_filter")
            case "length":
                return completion('{"reasons": "It goes on and', "length")
            case "schema":
                return completion('{"reasons": "None.", "winner": 1}')
        raise ValueError(f"there is no fault called {kind}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", choices=JUDGES, default="hash", help="how it decides")
    parser.add_argument("--faults", type=float, default=0.0, help="share of the replies that fail")
    parser.add_argument("--seconds", type=float, default=0.0, help="how long it thinks")
    arguments = parser.parse_args()
    judge = judging(JUDGES[arguments.judge])
    with Loopback(Faults(lambda call: replace(judge(call), after=arguments.seconds), arguments.faults)) as server:
        server.route("GET", "/cpu", lambda call: Reply({"seconds": time.process_time()}))
        print(server.url, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
