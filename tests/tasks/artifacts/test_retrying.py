"""MLflow is away: for a while, which loses nothing, or for too long, which ends a stage where it can go on."""

import dataclasses
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dpr_core.errors import DensePathError
from tasks.artifacts.store import Store
from tasks.run_stage import Outcome, run_stage
from tasks.running.stage import Stage
from tasks.running.workspace import Workspace

Make = Callable[..., Outcome]


class Flaky:
    """MLflow's client, which can be away."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.away = False
        self.after: str | None = None
        self.asked = 0

    def knock(self) -> None:
        if self.away:
            raise ConnectionRefusedError("Connection refused")

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.asked += 1
            self.knock()
            result = method(*args, **kwargs)
            if self.after == name:
                self.after = None
                raise ConnectionResetError("Connection reset by peer")
            return result

        return call


@pytest.fixture
def flaky(store: Store, monkeypatch: pytest.MonkeyPatch) -> Flaky:
    flaky = Flaky(store._client._mlflow)
    store._client._mlflow = flaky
    monkeypatch.setattr(store._client.retry, "_probe", flaky.knock)
    monkeypatch.setattr("tasks.artifacts.metric_buffer.FLUSH_SECONDS", 0.0)
    monkeypatch.setattr("tasks.artifacts.retrying.FIRST_PAUSE", 0.01)
    return flaky


def with_body(stage: Stage, body: Callable[[Any, Workspace], dict[str, float]]) -> Stage:
    return dataclasses.replace(stage, body=body)


def history(store: Store, run_id: str, metric: str = "loss") -> list[tuple[int, float]]:
    return [(each.step, each.value) for each in store._client.get_metric_history(run_id, metric)]


def write(work: Workspace) -> None:
    (work.output / "weights.bin").write_bytes(b"weights")


def test_a_request_whose_answer_was_lost_makes_one_run(store: Store, flaky: Flaky, make: Make) -> None:
    flaky.after = "create_run"
    outcome = make("number")
    assert [record.id for record in store.records()] == [outcome.id]
    assert store.verify(outcome.id) == []


@pytest.mark.parametrize("call", ["log_batch", "log_text", "set_tag", "set_terminated", "search_runs"])
def test_any_request_is_made_again(store: Store, flaky: Flaky, make: Make, call: str) -> None:
    flaky.after = call
    outcome = make("number")
    assert flaky.after is None
    assert store.record(outcome.id).finished
    assert history(store, outcome.id) == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]


def test_metrics_of_an_outage_wait_on_disk_and_come_in_order(
    store: Store, flaky: Flaky, toys: dict[str, Stage], caplog: pytest.LogCaptureFixture
) -> None:
    on_disk: list[int] = []

    def body(config: Any, work: Workspace) -> dict[str, float]:
        for step in range(20):
            flaky.away = 5 <= step < 15
            work.metrics({"loss": step / 4}, step)
            unsent = work.output.parent / "metrics.jsonl"
            on_disk.append(len(unsent.read_text().split("\n")) - 1 if unsent.exists() else 0)
        write(work)
        return {}

    outcome = run_stage(with_body(toys["number"], body), toys["number"].config(), {}, store=store)
    assert on_disk[:5] == [0] * 5
    assert on_disk[5:15] == list(range(1, 11))
    assert history(store, outcome.id) == [(step, step / 4) for step in range(20)]
    assert len([line for line in caplog.messages if "does not answer" in line]) == 1
    assert not list((store.home / "work").iterdir())


def test_an_outage_does_not_hold_up_the_loop(
    store: Store, flaky: Flaky, toys: dict[str, Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.artifacts.metric_buffer.FLUSH_SECONDS", 0.2)
    knocks: list[float] = []

    def slow() -> None:
        knocks.append(time.monotonic())
        raise TimeoutError("timed out")

    def body(config: Any, work: Workspace) -> dict[str, float]:
        with monkeypatch.context() as patch:
            patch.setattr(store._client.retry, "_probe", slow)
            until = time.monotonic() + 1.5
            step = 0
            while time.monotonic() < until:
                work.metrics({"loss": 0.0}, step)
                step += 1
                time.sleep(0.005)
        write(work)
        return {"steps": float(step)}

    outcome = run_stage(with_body(toys["number"], body), toys["number"].config(), {}, store=store)
    assert 2 <= len(knocks) <= 4, "each pause is twice the one before"
    assert len(history(store, outcome.id)) == outcome.metrics["steps"]


def test_an_outage_that_lasts_ends_the_stage_where_it_can_go_on(
    store: Store, flaky: Flaky, toys: dict[str, Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store._client.retry, "seconds", 0.05)
    began: list[int] = []

    def body(config: Any, work: Workspace) -> dict[str, float]:
        found = work.restore()
        first = 0 if found is None else int(found["step"])
        began.append(first)
        for step in range(first, 10):
            flaky.away = found is None and step >= 4
            work.metrics({"loss": float(step)}, step)
            time.sleep(0.02)
            work.checkpoint(step + 1, lambda step=step: {"step": step + 1})
        write(work)
        return {}

    stage = with_body(toys["number"], body)
    with pytest.raises(DensePathError, match="has not answered for .* give the same command again"):
        run_stage(stage, stage.config(), {}, store=store)
    [workdir] = (store.home / "work").iterdir()
    unsent = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().split("\n") if line]
    assert unsent[0][3] == 4
    flaky.away = False
    outcome = run_stage(stage, stage.config(), {}, store=store)
    assert began[0] == 0
    assert began[1] == unsent[-1][3] + 1, "it goes on where it ended"
    assert [record.id for record in store.records()] == [outcome.id]
    assert sorted(set(history(store, outcome.id))) == [(step, float(step)) for step in range(10)]


def test_an_outage_that_lasts_while_publishing_leaves_only_that_to_do(
    store: Store, flaky: Flaky, toys: dict[str, Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store._client.retry, "seconds", 0.05)
    began: list[bool] = []

    def body(config: Any, work: Workspace) -> dict[str, float]:
        began.append(True)
        work.metrics({"loss": 1.0}, 0)
        flaky.away = True
        work.metrics({"loss": 2.0}, 1)
        write(work)
        return {"value": 3.0}

    stage = with_body(toys["number"], body)
    with pytest.raises(DensePathError, match="has not answered for"):
        run_stage(stage, stage.config(), {}, store=store)
    flaky.away = False
    outcome = run_stage(stage, stage.config(), {}, store=store)
    assert began == [True]
    assert outcome.metrics == {"value": 3.0}
    assert history(store, outcome.id) == [(0, 1.0), (1, 2.0)]
    assert history(store, outcome.id, "value")[-1] == (1, 3.0)
    assert store.verify(outcome.id) == []


def test_who_is_told_to_end_does_not_wait_for_mlflow(
    store: Store, flaky: Flaky, toys: dict[str, Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.artifacts.mlflow_client.SECONDS_TO_END_KILLED", 0.1)

    def body(config: Any, work: Workspace) -> dict[str, float]:
        flaky.away = True
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_stage(with_body(toys["number"], body), toys["number"].config(), {}, store=store)
    assert time.monotonic() - started < 30


def test_a_lasting_error_is_told_at_once(store: Store, toys: dict[str, Stage]) -> None:
    def body(config: Any, work: Workspace) -> dict[str, float]:
        store._client._mlflow.delete_run(work.run.id)
        work.metrics({"loss": 1.0}, 0)
        work.run.flush()
        return {}

    with pytest.raises(DensePathError, match="MLflow at .*must be in the 'active' state"):
        run_stage(with_body(toys["number"], body), toys["number"].config(), {}, store=store)


@contextmanager
def locked(database: Path, seconds: float) -> Iterator[None]:
    """Another process holds the database for itself, and for some time after the block too."""
    code = (
        "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "c.execute('BEGIN EXCLUSIVE'); print('locked', flush=True); time.sleep(float(sys.argv[2]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(database), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    try:
        yield
    finally:
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("steps", [3, 400], ids=["still locked at the end", "free again meanwhile"])
def test_a_locked_database_loses_nothing(
    store: Store, toys: dict[str, Stage], monkeypatch: pytest.MonkeyPatch, steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tasks.artifacts.metric_buffer.FLUSH_SECONDS", 0.1)
    monkeypatch.setattr("tasks.artifacts.mlflow_client.PROBE_SECONDS", 0.05)

    def body(config: Any, work: Workspace) -> dict[str, float]:
        for step in range(steps):
            work.metrics({"loss": step / 8}, step)
            time.sleep(0.01)
        write(work)
        return {"value": 1.0}

    stage = with_body(toys["number"], body)
    with caplog.at_level(logging.WARNING):
        original = store.begin

        def begin(**values: Any) -> Any:
            run = original(**values)
            lock.__enter__()
            return run

        lock = locked(store.home / "mlflow.db", 2.0)
        monkeypatch.setattr(store, "begin", begin)
        outcome = run_stage(stage, stage.config(), {}, store=store)
        lock.__exit__(None, None, None)
    assert history(store, outcome.id) == [(step, step / 8) for step in range(steps)]
    assert store.verify(outcome.id) == []
    assert "does not answer (database is locked)" in caplog.text
    assert "answers again" in caplog.text


def test_the_store_is_waited_for_by_who_is_patient(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.artifacts.mlflow_client.PROBE_SECONDS", 0.05)
    Store.open()
    with locked(home / "mlflow.db", 2.0):
        with pytest.raises(DensePathError, match="cannot open the store of runs.*database is locked"):
            Store.open()
        assert Store.open(retry=True).records() == []


def test_a_store_that_stays_away_is_given_up_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPR_PATIENCE_SECONDS", "0.5")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://someone:hunter2@127.0.0.1:9/runs")
    with pytest.raises(
        DensePathError, match=r"cannot open the store of runs.*\*\*\*@127.0.0.1:9.*not answered"
    ) as caught:
        Store.open(retry=True)
    assert "hunter" not in str(caught.value)
