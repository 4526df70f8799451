"""Two thousand judgments through the real client, against a server of which almost every third reply is a fault."""

import asyncio
import hashlib
import json
import random
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dpr_core import judging
from dpr_core.benchmarks.base import Question
from dpr_core.config import evaluation as settings
from dpr_core.judging import pairwise
from dpr_core.judging.judge import Answer
from dpr_core.judging.pairwise import Game, Pair, judge_pairs, summarise

pytestmark = pytest.mark.integration

VARIABLE = "DENSE_PATH_TEST_KEY"
PROMPTS = 1000
SHARE_OF_FAULTS = 0.3

FAULTS = ("429", "429 retry-after", "500", "hang", "drop", "cut", "html")


class FaultyServer(ThreadingHTTPServer):
    """Prefers by a hash of the two answers, and fails at random before it says so."""

    request_queue_size = 256
    daemon_threads = True

    def __init__(self, faults: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults = faults
        self.random = random.Random(0)
        self.injected: Counter[str] = Counter()
        self.requests = 0

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has given up is no news."""


class Handler(BaseHTTPRequestHandler):
    server: FaultyServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests += 1
        if self.server.random.random() < self.server.faults:
            fault = self.server.random.choice(FAULTS)
            self.server.injected[fault] += 1
            self.fail(fault)
            return
        body = request["messages"][1]["content"]
        parts = [block.partition("\n")[2].rpartition("\n")[0] for block in body.split("\n\n")]
        first, second = (hashlib.sha256(text.encode()).hexdigest() for text in parts[-2:])
        verdict = json.dumps({"reasons": "By hash.", "verdict": "A" if first < second else "B"})
        self.reply(200, completion(verdict))

    def fail(self, fault: str) -> None:
        if fault == "hang":
            time.sleep(1.5)
            self.close_connection = True
        elif fault == "drop":
            self.close_connection = True
        elif fault == "cut":
            self.reply(200, completion("{}")[:60])
        elif fault == "html":
            self.reply(502, "<html>bad gateway</html>", "text/html")
        else:
            error = json.dumps({"error": {"message": "busy"}})
            extra = {"retry-after-ms": "10"} if "retry-after" in fault else {}
            self.reply(int(fault[:3]), error, extra=extra)

    def reply(
        self, status: int, text: str, kind: str = "application/json", extra: dict[str, str] | None = None
    ) -> None:
        data = text.encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(extra or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


def completion(text: str) -> str:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return json.dumps(
        {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    )


@pytest.fixture(autouse=True)
def quick_and_local(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("openai._base_client")
    monkeypatch.setattr(constants, "INITIAL_RETRY_DELAY", 0.02)
    monkeypatch.setattr(constants, "MAX_RETRY_DELAY", 0.1)
    monkeypatch.setattr(pairwise, "MOST_SECONDS_BETWEEN_ROUNDS", 0.1)
    monkeypatch.setenv(VARIABLE, "any")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def judged(faults: float, cache: Path) -> tuple[list[Game], FaultyServer]:
    with FaultyServer(faults) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        config = settings.OpenAIJudge(
            model="m", base_url=f"http://127.0.0.1:{server.server_port}/v1", verdicts="schema", template="t"
        )
        execution = settings.JudgeExecution(
            retries=2, rounds=20, concurrency=64, request_seconds=1.0, api_key_variable=VARIABLE
        )
        judge = judging.build(config, execution, lambda text: None, cache)
        pairs = [
            Pair(Question(id=str(i), turns=("?",)), Answer.of(f"mine {i}"), Answer.of(f"theirs {i}"))
            for i in range(PROMPTS)
        ]
        games = asyncio.run(judge_pairs(judge, pairs, execution, lambda *progress: None))
        server.shutdown()
        return games, server


def test_every_verdict_is_there_once_and_as_without_faults(tmp_path: Path) -> None:
    whole, healthy = judged(0.0, tmp_path / "healthy.sqlite")
    games, faulty = judged(SHARE_OF_FAULTS, tmp_path / "faulty.sqlite")
    assert healthy.requests == 2 * PROMPTS
    assert set(faulty.injected) == set(FAULTS)
    assert faulty.injected.total() > 0.25 * faulty.requests
    seen = Counter((game.question_id, game.candidate_first) for game in games)
    assert seen == Counter({(str(i), first): 1 for i in range(PROMPTS) for first in (True, False)})
    assert [game.verdict for game in games] == [game.verdict for game in whole]
    assert summarise(games, 100, 0) == summarise(whole, 100, 0)
