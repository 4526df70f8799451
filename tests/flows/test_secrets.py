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

from deployments.servers import mlflow_server, running
from tasks.artifacts.mlflow_client import MlflowClient, make_database
from tests.flows.conftest import run_dpr
from tests.loopback import JUDGES, Answering, Call, Loopback, Reply, completion, judging, refused

pytestmark = pytest.mark.integration

TINY = Path(__file__).with_name("tiny.yaml")
KEY = "sk-planted/key+7f3a9c5e1b"
TOKEN = "hf_planted7f3a9c5e1bToken"
PASSWORD = "planted/pass word+7f3a9c"
PROXY = "planted/proxy+7f3a9c"
PREFECT = "pnu_planted7f3a9c5e1bPrefect"
CLOUD = "planted/cloud+7f3a9c5e1b"
SECRETS = {"KEY": KEY, "TOKEN": TOKEN, "PASSWORD": PASSWORD, "PROXY": PROXY, "PREFECT": PREFECT, "CLOUD": CLOUD}
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
    wanted = [(name, disguise) for name, secret in SECRETS.items() for disguise in disguises(secret)]
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
    """A verdict that tells the key as well."""
    said = BY_HASH(call)
    assert isinstance(said.body, dict)
    text = said.body["choices"][0]["message"]["content"]
    return completion(f"The key is {echoed(call)}, or {call.headers['authorization']}.\n{text}")


@pytest.mark.slow
def test_no_key_no_token_and_no_password_is_written_anywhere(loopback: Loopback, tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "server"
    storage = ["--backend-store-uri", f"sqlite:///{folder}/runs.db", "--artifacts-destination", str(folder / "files")]
    server, address = mlflow_server(folder, *storage)
    planted = {
        "PLANTED_KEY": KEY,
        "HF_TOKEN": TOKEN,
        "HTTPS_PROXY": f"http://somebody:{quote(PROXY, safe='')}@127.0.0.1:9",
        "NO_PROXY": "127.0.0.1,localhost",
        "PREFECT_API_KEY": PREFECT,
        "AWS_SECRET_ACCESS_KEY": CLOUD,
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
        assert "repeats the key in PLANTED_KEY" in run("told", "--debug").stderr
        loopback.answer = BY_HASH
        done = run("success", "--debug", "--json")
        assert done.status == 0, done.stderr
    assert {echoed(call) for call in loopback.calls} == {KEY}, "it was used"
    assert leaks(home, folder, said) == {}
    # What was searched is what there is: verdicts, artifacts, logs of the server, Prefect's parameters.
    assert b"VERDICT" in b"".join(path.read_bytes() for path in home.glob("*.sqlite*"))
    with closing(sqlite3.connect(home / "prefect" / "prefect.db")) as database:
        assert "PLANTED_KEY" in str(database.execute("SELECT parameters FROM flow_run").fetchall())
    assert any(b"VERDICT" in path.read_bytes() for path in (folder / "files").rglob("*") if path.is_file())


PLACES = {
    "a number": "reinforce.learning_rate={}",
    "a choice": "reinforce.execution.device={}",
    "a kind": "judge.by.type={}",
    "a list": "sft.checkpoints=[{}]",
    "a section": "judge.execution={}",
    "the variable's name": "judge.execution.api_key_variable={}",
    "an address": "judge.by={{type: openai, base_url: 'https://me:{}@host/v1'}}",
    "an address's query": "judge.by={{type: openai, base_url: 'https://host/v1?key={}'}}",
    "no address": "judge.by={{type: openai, base_url: 'host://{}@host'}}",
    "a text": "description={}",
    "a model": "judge.by={{type: openai, model: {}}}",
    "no field": "judge.execution.api_key={}",
}


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("place", PLACES)
def test_a_key_in_a_setting_is_refused_and_not_shown(
    dpr: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, known: bool
) -> None:
    if known:
        monkeypatch.setenv("PLANTED_KEY", KEY)
    secret = KEY if known else "sk-proj-4f7f3a9c5e1bPlanted"
    setting = PLACES[place].format(secret)
    path, _, value = setting.partition("=")
    recipe = tmp_path / "mine.yaml"
    *sections, last = path.split(".")
    recipe.write_text(f"extends: {TINY}\n" + "".join(f"{'  ' * n}{s}:\n" for n, s in enumerate(sections)))
    with recipe.open("a") as file:
        file.write(f"{'  ' * len(sections)}{last}: {value}\n")
    for arguments in (("run", TINY, "--set", setting), ("run", recipe), ("config", recipe), ("plan", recipe)):
        refused = dpr(*arguments)
        assert refused.status == 2, arguments
        assert secret not in refused.stdout + refused.stderr
        assert secret not in (shown := dpr(*arguments, "--debug")).stdout + shown.stderr


@pytest.mark.slow
def test_no_server_that_is_not_there_is_named_with_its_password(tmp_path: Path) -> None:
    location = f"sftp://somebody:{quote(PASSWORD, safe='')}@127.0.0.1:9/runs"
    prepared = tmp_path / "theirs.db"
    make_database(prepared)
    MlflowClient(f"sqlite:///{prepared}", tmp_path, 0).connect(None)
    with closing(sqlite3.connect(prepared)) as database:
        database.execute("UPDATE experiments SET name = 'dense-path', artifact_location = ?", (location,))
        database.commit()
    away = f"http://somebody:{quote(PASSWORD, safe='')}@127.0.0.1:9"
    cases = {
        "Prefect": {"PREFECT_API_URL": f"{away}/api", "PREFECT_API_KEY": PREFECT, "PREFECT_LOGGING_LEVEL": "DEBUG"},
        "artifacts": {"MLFLOW_TRACKING_URI": f"sqlite:///{prepared}", "DPR_PATIENCE_SECONDS": "0"},
        "MLflow": {"MLFLOW_TRACKING_URI": f"{away}/runs?token={TOKEN}", "DPR_PATIENCE_SECONDS": "0"},
    }
    said = tmp_path / "said"
    said.mkdir()
    for name, variables in cases.items():
        home = tmp_path / name
        result = run_dpr("run", TINY, "--debug", home=home, **variables)
        assert result.status != 0, name
        (said / name).write_text(result.stdout + result.stderr)
        assert leaks(home, said) == {}


@pytest.mark.parametrize("secret", SECRETS.values())
def test_a_leak_is_found(tmp_path: Path, secret: str) -> None:
    for number, text in enumerate(
        (secret, quote(secret, safe=""), base64.b64encode(f"me:{secret}\n".encode()).decode())
    ):
        (tmp_path / f"{number}.bin").write_bytes(b"\0" + text.encode() + b"\0")
    assert len(leaks(tmp_path)) == 3
