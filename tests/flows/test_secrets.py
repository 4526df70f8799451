"""Keys, tokens and passwords are planted, a pipeline is run with them, and everything that was written is searched."""

import base64
import itertools
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from tests.flows.conftest import run_dpr
from tests.loopback import JUDGES, Answering, Call, Loopback, Reply, completion, judging, refused
from tests.services.servers import mlflow_server, running

pytestmark = pytest.mark.integration

TINY = Path(__file__).with_name("tiny.yaml")
KEY = "sk-planted/key+7f3a9c5e1b"
TOKEN = "hf_planted7f3a9c5e1bToken"
PASSWORD = "planted/pass word+7f3a9c"
OPTIONS = {
    "judge.by.type": "openai",
    "judge.by.verdicts": "text",
    "judge.execution.api_key_variable": "PLANTED_KEY",
    "judge.execution.check_endpoint": "false",
    "judge.execution.retries": "0",
    "judge.execution.rounds": "0",
}
BY_HASH = judging(JUDGES["hash"])


def disguises(secret: str) -> Iterator[bytes]:
    """The secret itself, as it stands in an address or in JSON, and in base64, wherever it begins there."""
    for text in (secret, quote(secret), quote(secret, safe=""), json.dumps(secret)[1:-1]):
        yield text.encode()
    for shift in range(3):
        # The first and the last group may hold other bits too.
        yield base64.b64encode(bytes(shift) + secret.encode())[4:-4]


def leaks(*folders: Path) -> dict[str, str]:
    """Files that hold a secret, with which one."""
    wanted = [(name, d) for name in ("KEY", "TOKEN", "PASSWORD") for d in disguises(globals()[name])]
    return {
        str(path): name
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
        for name, disguise in wanted
        if disguise in str(path).encode() + path.read_bytes()
    }


def echoed(call: Call) -> str:
    return call.headers["authorization"].removeprefix("Bearer ")


def error(call: Call) -> Reply:
    return refused(500, f"{call.headers} {echoed(call)} {quote(echoed(call), safe='')}")


def broken(call: Call) -> Reply:
    return Reply(f'{{"id": "{echoed(call)}", "choi', headers={"Content-Type": "application/json"})


def alternating(*answers: Answering) -> Answering:
    turns = itertools.cycle(answers)
    return lambda call: next(turns)(call)


def talkative(call: Call) -> Reply:
    """A verdict that tells the key as well, wherever there is room for a word."""
    said = BY_HASH(call)
    assert isinstance(said.body, dict)
    text = said.body["choices"][0]["message"]["content"]
    reply = completion(f"The key is {echoed(call)}, or {call.headers['authorization']}.\n{text}")
    assert isinstance(reply.body, dict)
    return Reply({**reply.body, "model": echoed(call), "system_fingerprint": echoed(call)})


@pytest.mark.slow
def test_no_key_no_token_and_no_password_is_written_anywhere(loopback: Loopback, tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "server"
    storage = ["--backend-store-uri", f"sqlite:///{folder}/runs.db", "--artifacts-destination", str(folder / "files")]
    server, address = mlflow_server(folder, *storage)
    planted = {
        "PLANTED_KEY": KEY,
        "HF_TOKEN": TOKEN,
        "MLFLOW_TRACKING_URI": f"http://somebody:{quote(PASSWORD, safe='')}@{urlsplit(address).netloc}",
        "PREFECT_LOGGING_LEVEL": "DEBUG",
        "PREFECT_SERVER_LOGGING_LEVEL": "DEBUG",
        "OPENAI_LOG": "debug",
    }
    settings = [f"{name}={value}" for name, value in (OPTIONS | {"judge.by.base_url": loopback.url}).items()]
    command = ["run", TINY, *(part for each in settings for part in ("--set", each))]
    said = tmp_path / "said"
    said.mkdir()

    def run(name: str, *options: str) -> Any:
        result = run_dpr(*command, *options, home=home, **planted)
        (said / name).write_text(result.stdout + result.stderr)
        return result

    with running(server):
        loopback.answer = lambda call: refused(401, f"Incorrect API key provided: {echoed(call)}")
        assert "refused the key in PLANTED_KEY" in run("refused", "--debug").stderr
        loopback.answer = alternating(error, broken)
        failed = run("failed", "--debug").stderr
        assert "HTTP 500" in failed or "could not be read" in failed
        loopback.answer = talkative
        done = run("success", "--debug", "--json")
        assert done.status == 0, done.stderr
    assert {echoed(call) for call in loopback.calls} == {KEY}, "it was used"
    assert leaks(home, folder, said) == {}
    # What was searched is what there is: verdicts, artifacts, logs of the server, Prefect's parameters.
    assert b"The key is <key>" in b"".join(path.read_bytes() for path in home.glob("*.sqlite*"))
    with closing(sqlite3.connect(home / "prefect" / "prefect.db")) as database:
        assert "PLANTED_KEY" in str(database.execute("SELECT parameters FROM flow_run").fetchall())
    assert any(b"The key is <key>" in path.read_bytes() for path in (folder / "files").rglob("*") if path.is_file())


@pytest.mark.parametrize("secret", [KEY, TOKEN, PASSWORD])
def test_a_leak_is_found(tmp_path: Path, secret: str) -> None:
    for number, text in enumerate(
        (secret, quote(secret, safe=""), base64.b64encode(f"me:{secret}\n".encode()).decode())
    ):
        (tmp_path / f"{number}.bin").write_bytes(b"\0" + text.encode() + b"\0")
    assert len(leaks(tmp_path)) == 3
