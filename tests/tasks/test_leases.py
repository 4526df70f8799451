"""Two homes on one database: each stage once, whoever is stopped, killed or late, and whatever the clocks say."""

import dataclasses
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dpr_core.config.base import StageConfig
from dpr_core.config.execution import ExecutionConfig, LaunchConfig
from dpr_core.errors import DensePathError, UsageError
from tasks.artifacts.leases import Leases, Ledger, lease_seconds
from tasks.artifacts.retrying import LeaseLostError
from tasks.artifacts.store import Record, Store
from tasks.local_home import ATTEMPT
from tasks.run_stage import Outcome, run_stage
from tasks.running.places import Folder, UnreachableStatesError
from tasks.running.workspace import Workspace
from tests.tasks.conftest import LAPSE, NUMBER, Homes, silence, write


def number(store: Store, body: Callable[[Any, Workspace], dict[str, float]] | None = None, **settings: Any) -> Outcome:
    stage = NUMBER if body is None else dataclasses.replace(NUMBER, body=body)
    return run_stage(stage, stage.config(), {}, store=store, **settings)


class Shared(StageConfig):
    execution: ExecutionConfig = ExecutionConfig(launch=LaunchConfig(processes=2))


class Body:
    """A stage that waits amid its work until it is told to go on."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.goes_on = threading.Event()
        self.times = 0

    def __call__(self, config: StageConfig, work: Workspace) -> dict[str, float]:
        self.times += 1
        work.metrics({"loss": 1.0}, 1)
        self.began.set()
        assert self.goes_on.wait(60)
        work.metrics({"loss": 0.5}, 2)
        write(work, 1)
        return {"value": 1.0}


@pytest.fixture
def aside() -> Any:
    with ThreadPoolExecutor() as pool:
        yield pool


def status(store: Store) -> list[tuple[str, str]]:
    return [(record.id, record.status) for record in store.records()]


def test_two_hosts_with_one_recipe_make_a_stage_once(at: Homes, aside: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    one, another, body = at("one"), at("another"), Body()
    first = aside.submit(number, one, body)
    assert body.began.wait(60)
    second = aside.submit(number, another, body)
    time.sleep(3 * LAPSE)
    assert not second.done(), "it waits as long as the other lives"
    body.goes_on.set()
    assert (first.result().status, second.result().status) == ("ran", "reused")
    assert first.result().id == second.result().id
    assert status(one) == [(first.result().id, "FINISHED")]
    assert f":{one.home}); waiting for it" in caplog.text
    assert one.verify(first.result().id) == []


def test_what_a_killed_host_left_is_taken_over_in_its_run(
    at: Homes, aside: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was merely stopped notices, and publishes nothing."""
    one, another, body = at("one"), at("another"), Body()
    silence(monkeypatch, one)
    first = aside.submit(number, one, body)
    assert body.began.wait(60)
    [left] = one.records()
    taken = number(another)
    assert (taken.id, taken.status) == (left.id, "ran")
    body.goes_on.set()
    with pytest.raises(LeaseLostError, match=rf"another took it over, after nothing .* for {LAPSE:g} s. Nothing was"):
        first.result()
    assert status(one) == [(left.id, "FINISHED")]
    record = one.record(left.id)
    assert (record.results, record.reason) == ({"value": 1.0}, "")
    assert another.is_own(record)
    assert one.verify(left.id) == []
    assert number(one).id == left.id


def test_a_host_that_was_silent_and_lost_nothing_goes_on(
    at: Homes, aside: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes a new entry before anything else, so that of it and another that is about to take over one loses."""
    one, body = at("one"), Body()
    silence(monkeypatch, one)
    first = aside.submit(number, one, body)
    assert body.began.wait(60)
    time.sleep(2 * LAPSE)
    body.goes_on.set()
    made = first.result()
    assert made.status == "ran"
    assert Ledger.of(one._client.get_run(made.id)).number > 1
    assert one.verify(made.id) == []


def test_a_home_takes_up_at_once_what_its_own_dead_process_left(at: Homes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock says more than any silence."""
    monkeypatch.setenv("DPR_LEASE_SECONDS", "3000")
    one = at("one")
    left = killed(one)
    began = time.monotonic()
    assert number(one).id == left.id
    assert time.monotonic() - began < 60


def test_what_failed_with_nothing_to_go_on_from_is_made_in_another_run(at: Homes) -> None:
    one, another = at("one"), at("another")

    def fail(config: StageConfig, work: Workspace) -> dict[str, float]:
        raise DensePathError("no luck")

    with pytest.raises(DensePathError, match="no luck"):
        number(one, fail)
    [failed] = one.records()
    made = number(another)
    assert dict(status(one)) == {failed.id: "FAILED", made.id: "FINISHED"}


def test_what_failed_after_a_state_goes_on_in_its_run_anywhere(at: Homes) -> None:
    one, another = at("one"), at("another")

    def fail(config: StageConfig, work: Workspace) -> dict[str, float]:
        work._workdir.save_state(1, 1, {})
        raise DensePathError("no luck")

    with pytest.raises(DensePathError, match="no luck"):
        number(one, fail)
    [failed] = one.records()
    assert number(another).id == failed.id
    assert status(one) == [(failed.id, "FINISHED")]


def test_a_run_that_is_deleted_in_mlflow_is_lost(at: Homes, aside: Any) -> None:
    one, body = at("one"), Body()
    first = aside.submit(number, one, body)
    assert body.began.wait(60)
    [left] = one.records()
    one._client.delete_run(left.id)
    time.sleep(LAPSE)
    body.goes_on.set()
    with pytest.raises(LeaseLostError, match="it was deleted, or ended, in MLflow"):
        first.result()
    assert number(one).status == "ran"


@pytest.mark.parametrize("hours", [-1, 1])
def test_clocks_an_hour_apart_matter_to_nobody(
    at: Homes, aside: Any, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """Not to the time that MLflow shows, and not to what is made anew since a moment."""
    from datetime import UTC, datetime, timedelta

    one, another, body = at("one"), at("another"), Body()
    moment = datetime.now(UTC) + timedelta(hours=hours)
    first = aside.submit(number, one, body, not_before=moment)
    assert body.began.wait(60)
    second = aside.submit(number, another, body, not_before=moment)
    time.sleep(2 * LAPSE)
    body.goes_on.set()
    assert (first.result().id, first.result().status) == (second.result().id, "ran")
    assert second.result().status == "reused"
    [made] = one.records()
    later = number(one, not_before=datetime.now(UTC) + timedelta(hours=2))
    assert (later.status, later.id != made.id) == ("ran", True)


def test_a_forced_run_takes_the_place_of_one_that_was_left(at: Homes) -> None:
    from datetime import UTC, datetime

    one = at("one")
    left = killed(one)
    taken = number(one, not_before=datetime.now(UTC))
    assert dict(status(one)) == {left.id: "KILLED", taken.id: "FINISHED"}
    assert one.record(left.id).reason == "another run was made in its place"


def test_ranks_are_started_once_no_other_host_is_at_the_stage(at: Homes, aside: Any) -> None:
    """Those that waited would each keep a GPU from others."""
    one, another, body = at("one"), at("another"), Body()
    stage = dataclasses.replace(NUMBER, config=Shared, body=body, shared=True)
    first = aside.submit(run_stage, stage, Shared(), {}, store=one)
    assert body.began.wait(60)

    def no_ranks(*_: Any) -> Outcome:
        raise AssertionError

    second = aside.submit(run_stage, stage, Shared(), {}, store=another, in_ranks=no_ranks)
    time.sleep(3 * LAPSE)
    assert not second.done()
    body.goes_on.set()
    assert (second.result().id, second.result().status) == (first.result().id, "reused")


def test_a_controller_ends_no_run_that_another_host_is_at(at: Homes, aside: Any) -> None:
    """Its ranks were stopped for long, and failed once they noticed."""
    one, another, body = at("one"), at("another"), Body()
    first = aside.submit(number, another, body)
    assert body.began.wait(60)
    [run_id] = [record.id for record in one.records()]
    one.end(run_id, "FAILED", "its ranks failed")
    body.goes_on.set()
    assert first.result().id == run_id
    assert (one.record(run_id).status, one.record(run_id).reason) == ("FINISHED", "")


def test_reuse_removes_no_states_of_the_run_that_another_host_makes_in_its_place(
    at: Homes, aside: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from datetime import UTC, datetime

    (tmp_path / "states").mkdir()
    monkeypatch.setenv("DPR_STATES", (tmp_path / "states").as_uri())
    one, another, body = at("one"), at("another"), Body()
    left = killed(one, lambda work: work._workdir.save_state(1, 1, {}))
    made = number(another)
    assert made.id == left.id
    [attempt] = one.home.glob(f"work/*/{ATTEMPT}")
    assert attempt.read_text() == made.id

    def forced(config: StageConfig, work: Workspace) -> dict[str, float]:
        work._workdir.save_state(1, 1, {})
        return body(config, work)

    second = aside.submit(number, another, forced, not_before=datetime.now(UTC))
    assert body.began.wait(60)
    assert number(one).id == made.id
    assert not attempt.exists()
    assert list((tmp_path / "states").rglob("SEAL.json"))
    body.goes_on.set()
    assert second.result().status == "ran"
    assert list((tmp_path / "states").iterdir()) == []


def test_states_that_cannot_be_reached_any_more_end_the_run_in_words(
    at: Homes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "states").mkdir()
    monkeypatch.setenv("DPR_STATES", (tmp_path / "states").as_uri())
    one = at("one")

    def away(*_: Any) -> None:
        raise PermissionError("Access Denied")

    with monkeypatch.context() as patched:
        patched.setattr(Folder, "files", away)
        with pytest.raises(UnreachableStatesError, match="Access Denied"):
            number(one)
    [failed] = one.records()
    assert (failed.status, "Access Denied" in failed.reason) == ("FAILED", True)
    assert number(at("another")).id == failed.id, "there may have been something to go on from"


def killed(store: Store, amid: Callable[[Workspace], object] = lambda work: None) -> Record:
    """A run whose process was gone before it could say so."""

    def die(config: StageConfig, work: Workspace) -> dict[str, float]:
        amid(work)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        silence(patched, store)
        patched.setattr("tasks.artifacts.stage_run.StageRun.end", lambda *_, **named: None)
        with pytest.raises(KeyboardInterrupt):
            number(store, die)
    return store.records()[0]


# Claims


def contend(leases: Leases, runs: "Runs") -> str:
    held = leases.hold_one(
        runs.search,
        prepare=lambda: None,
        create=runs.create,
        discard=lambda ledger: None,
        is_usable=lambda run: True,
        is_settled=lambda runs: any(run.info.status == "FINISHED" for run in runs),
        on_wait=lambda holder: None,
    )
    if held is None:
        return ""
    run, lease = held
    with lease:
        lease.confirm()
        runs.client.fenced(lease.confirm).set_terminated(run.info.run_id, "FINISHED")
    return str(run.info.run_id)


class Runs:
    """Those of one key."""

    def __init__(self, store: Store, key: str) -> None:
        self.client = store._client
        self._store = store
        self._key = key

    def search(self) -> list[Any]:
        return list(self._store._search(f"tags.`dpr.key` = '{self._key}'"))

    def create(self) -> None:
        self.client.create_run(self._store._experiment, {"dpr.key": self._key, "dpr.stage": "x", "dpr.beat": "0"}, "x")


@pytest.mark.parametrize("rounds", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_of_eight_that_come_at_once_one_has_it(at: Homes, rounds: int) -> None:
    stores = [at(f"home{i}") for i in range(8)]
    each = [Leases(store._client, store.home, store._owner) for store in stores]
    with ThreadPoolExecutor(8) as pool:
        for number in range(rounds):
            runs = [Runs(store, f"{number:064x}") for store in stores]
            held = [found for found in pool.map(contend, each, runs) if found]
            finished = [run.info.run_id for run in runs[0].search() if run.info.status == "FINISHED"]
            assert held == finished
            assert len(held) == 1


@pytest.mark.parametrize("setting", ["soon", "0", "-1", "nan", "1e9"])
def test_an_impossible_lapse_is_refused(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPR_LEASE_SECONDS", setting)
    with pytest.raises(UsageError, match=f"DPR_LEASE_SECONDS: '{setting}' is no number of seconds up to 3600"):
        lease_seconds()
