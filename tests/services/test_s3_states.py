"""States in an S3 bucket: another machine goes on from them; a server that answers 503 is waited for, for a while."""

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.servers import Server
from dpr_core.config.execution import ExecutionConfig
from tasks.artifacts.store import Store
from tasks.cleanup import GarbageCollector
from tasks.run_stage import run_stage
from tasks.running import places
from tasks.running.places import UnreachableStatesError
from tasks.running.stage_workdir import StageWorkdir
from tests.services.conftest import Steps, training

pytestmark = pytest.mark.services

KEY, RUN = "a" * 64, "1" * 32


class StepsAndStates(Steps):
    execution: ExecutionConfig = ExecutionConfig(checkpoint_steps=1)


class Busy:
    """Stands before a server, and answers 503 in its place for as long as it is told to."""

    def __init__(self, port: int) -> None:
        self.until = 0.0
        self.refused = 0
        self._port = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            line, _ = self._listening.accept()
            threading.Thread(target=self._serve, args=(line,), daemon=True).start()

    def _serve(self, line: socket.socket) -> None:
        with line:
            first = line.recv(65536)
            if time.monotonic() < self.until:
                self.refused += 1
                body = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your rate.</Message></Error>"
                head = f"HTTP/1.1 503 Slow Down\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                line.sendall(head.encode() + body)
                return
            with socket.create_connection(("127.0.0.1", self._port)) as server:
                server.sendall(first)
                back = threading.Thread(target=_pass, args=(server, line))
                back.start()
                _pass(line, server)
                back.join()


def _pass(here: socket.socket, there: socket.socket) -> None:
    try:
        while part := here.recv(65536):
            there.sendall(part)
        there.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@pytest.fixture
def busy(s3: tuple[Server, str]) -> Busy:
    return Busy(int(s3[1].rpartition(":")[2]))


@pytest.fixture
def bucket(busy: Busy, s3: tuple[Server, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import boto3

    variables = {
        "AWS_ENDPOINT_URL": busy.address,
        "AWS_ACCESS_KEY_ID": "planted-key",
        "AWS_SECRET_ACCESS_KEY": "planted-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "DPR_STATES": "s3://states/of/all",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    made = boto3.resource("s3", endpoint_url=s3[1]).Bucket("states")
    made.create()
    made.objects.all().delete()
    places._opened.cache_clear()
    yield made
    places._opened.cache_clear()


def state(step: int) -> dict[str, Any]:
    return {"step": step, "weights": torch.full((1000, 1000), float(step))}


@pytest.fixture
def kept(bucket: Any, tmp_path: Path) -> StageWorkdir:
    workdir = StageWorkdir(tmp_path / "one" / "work" / KEY)
    workdir.check()
    workdir.open(RUN)
    (workdir.output / "half").mkdir()
    (workdir.output / "half" / "model").write_text("at half")
    for step in (1, 2, 3):
        assert workdir.save_state(step, step, state(step)) > 4_000_000
    return workdir


def files(bucket: Any) -> set[str]:
    """Without the empty objects that stand for folders."""
    return {each.key for each in bucket.objects.all() if not each.key.endswith("/")}


def test_another_machine_goes_on(kept: StageWorkdir, bucket: Any, tmp_path: Path) -> None:
    shutil.rmtree(kept.folder)
    names = {key.removeprefix(f"of/all/{KEY}/{RUN}/0/").partition("/")[0] for key in files(bucket)}
    assert names == {"000000002", "000000003", "output"}
    other = StageWorkdir(tmp_path / "two" / "work" / KEY)
    assert other.runs_left() == [RUN]
    other.open(RUN)
    saved = other.latest_state()
    assert saved is not None
    found = saved.read()
    del saved
    assert (found["step"], float(found["weights"].sum())) == (3, 3e6)
    assert (other.output / "half" / "model").read_text() == "at half"
    assert list(other.scratch.iterdir()) == [], "what was fetched takes no room once it is mapped"
    other.clear()
    assert files(bucket) == set()


def test_a_damaged_object_gives_way_to_the_state_before(kept: StageWorkdir, bucket: Any, tmp_path: Path) -> None:
    damaged = bucket.Object(f"of/all/{KEY}/{RUN}/0/000000003/tensors-0.safetensors")
    body = bytearray(damaged.get()["Body"].read())
    body[-1] ^= 1
    damaged.put(Body=bytes(body))
    saved = kept.latest_state()
    assert saved is not None
    assert saved.step == 2


def test_a_server_that_is_busy_for_a_while_is_waited_for(kept: StageWorkdir, busy: Busy) -> None:
    busy.until = time.monotonic() + 3
    assert kept.save_state(4, 4, state(4)) > 0
    assert busy.refused > 2
    busy.until = time.monotonic() + 3
    saved = kept.latest_state()
    assert saved is not None
    assert saved.step == 4


def test_one_that_stays_busy_costs_a_state_and_not_the_work(
    kept: StageWorkdir, busy: Busy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(places, "ATTEMPTS", 2)
    places._opened.cache_clear()
    impatient = StageWorkdir(kept.folder)
    busy.until = time.monotonic() + 3600
    assert impatient.save_state(4, 4, state(4)) == 0
    assert "no state could be kept at step 4 in s3://states/of/all/" in caplog.text
    assert "planted" not in caplog.text
    with pytest.raises(UnreachableStatesError, match="DPR_STATES: s3://states/of/all.* cannot be used"):
        impatient.runs_left()
    with pytest.raises(UnreachableStatesError):
        impatient.check()
    busy.until = 0.0
    saved = impatient.latest_state()
    assert saved is not None
    assert saved.step == 3


def test_a_bucket_that_is_not_there_is_said_before_a_stage_begins(
    bucket: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPR_STATES", "s3://no-such-bucket/x")
    store = Store.open()
    with pytest.raises(UnreachableStatesError, match="s3://no-such-bucket/x cannot be used"):
        run_stage(training(), Steps(seed=1), {}, store=store)
    assert store.records() == []


class Killed(BaseException):
    """As abrupt as SIGKILL, short of ending the tests."""


def interrupted(step: int) -> None:
    if step == 30:
        raise Killed


CONFIG = StepsAndStates(seed=2)


def test_an_interrupted_stage_leaves_its_states_there_and_one_that_is_done_none(bucket: Any, home: Path) -> None:
    store = Store.open()
    with pytest.raises(Killed):
        run_stage(replace(training(interrupted), config=StepsAndStates), CONFIG, {}, store=store)
    [record] = store.records()
    assert {
        f"of/all/{record.key}/{record.id}/0/000000030/SEAL.json",
        f"of/all/{record.key}/{record.id}/0/000000029/SEAL.json",
    } < files(bucket)
    shutil.rmtree(home / "work" / record.key)
    begun: list[int] = []
    outcome = run_stage(replace(training(begun.append), config=StepsAndStates), CONFIG, {}, store=store)
    assert (outcome.id, begun[0]) == (record.id, 30)
    assert files(bucket) == set()


def test_gc_removes_what_is_known_here_and_no_more(bucket: Any, home: Path, kept: StageWorkdir) -> None:
    store = Store.open()
    with pytest.raises(Killed):
        run_stage(replace(training(interrupted), config=StepsAndStates), CONFIG, {}, store=store)
    [record] = store.records()
    theirs = {key for key in files(bucket) if KEY in key}
    assert [piece.kind for piece in GarbageCollector(store).find() if piece.kind in ("states", "work")] == []
    garbage = GarbageCollector(store, unfinished=True)
    [piece] = [each for each in garbage.find() if each.kind == "states"]
    assert piece.where == f"s3://states/of/all/{record.key}/{record.id}"
    assert "would start from its beginning" in piece.why
    assert "states" in [each.kind for each in garbage.remove(garbage.find())]
    assert files(bucket) == theirs
