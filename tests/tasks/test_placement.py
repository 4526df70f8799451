"""Stages on work pools, with a server that is made of answers: what is asked for, waited for, said and cancelled."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Cancelling, Completed, Crashed, Failed, Running, Scheduled

import dpr_core
from dpr_core.config.data import SubsampleConfig
from dpr_core.config.model import LabBackboneConfig
from dpr_core.errors import DensePathError, UsageError
from tasks import placement
from tasks.artifacts.store import Store
from tasks.placement import WorkPools
from tasks.run_stage import Outcome, StageJob

JOB = StageJob("backbone", "my backbone", LabBackboneConfig(seed=3), {}, "p" * 32)


@pytest.fixture(autouse=True)
def version(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stages of these tests are toys, among which there is none of that name."""
    monkeypatch.setattr(placement, "_stage_version", lambda job: 7)


class Answers:
    """A Prefect server: the flow runs by their keys, each with the states that it is found in, one after another."""

    def __init__(self, *flow_runs: list[Any]) -> None:
        self.prepared = [list(states) for states in flow_runs]
        self.states: dict[UUID, list[Any]] = {}
        self.by_key: dict[str, UUID] = {}
        self.asked: list[tuple[str, str, dict[str, Any]]] = []
        self.cancelled: list[UUID] = []
        self.tags: list[str] = []
        self.reading = threading.Event()

    def check(self, place: str) -> list[str]:
        if place.startswith("no"):
            raise UsageError(f"there is no work pool {place}")
        return [f"{place} has no worker"]

    def start(self, place: str, name: str, parameters: dict[str, Any], key: str) -> Any:
        self.asked.append((place, name, parameters))
        if key not in self.by_key:
            self.by_key[key] = uuid4()
            self.states[self.by_key[key]] = self.prepared.pop(0)
        return self.found(self.by_key[key])

    def found(self, flow_run: UUID) -> Any:
        states = self.states[flow_run]
        state = states.pop(0) if len(states) > 1 else states[0]
        if isinstance(state, Exception):
            raise state
        return SimpleNamespace(id=flow_run, name="my backbone", state=state, state_type=state.type, tags=self.tags)

    def read(self, flow_run: UUID) -> Any:
        self.reading.set()
        return self.found(flow_run)

    def cancel(self, flow_run: UUID) -> None:
        self.cancelled.append(flow_run)
        self.states[flow_run] = [Cancelled()]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "POLL_SECONDS", 0.0)


@pytest.fixture
def number(make: Callable[..., Outcome]) -> Outcome:
    """An artifact, as a worker has made it."""
    return make("number", value=7)


def run(store: Store, server: Answers, job: StageJob = JOB) -> Outcome:
    with WorkPools(store, server) as pools:  # type: ignore[arg-type]
        return pools.run(job, "gpu/night")


def ran(artifact: str, name: str = "Ran") -> State[Any]:
    return Completed(name=name, message=f"{artifact} on a-worker in 3 s")


@pytest.mark.parametrize(("name", "status"), [("Ran", "ran"), ("Reused", "reused")])
def test_what_a_worker_has_made_is_looked_up_in_the_store(
    store: Store, number: Outcome, name: str, status: str
) -> None:
    server = Answers([Scheduled(), Running(), ran(number.id, name)])
    outcome = run(store, server)
    assert (outcome.stage, outcome.name, outcome.id) == ("backbone", "my backbone", number.id)
    assert (outcome.status, outcome.metrics) == (status, {"value": 7.0})
    [(place, title, parameters)] = server.asked
    assert (place, title) == ("gpu/night", "my backbone")
    assert parameters["config"] == JOB.config.model_dump(mode="json")
    assert parameters["version"] == dpr_core.__version__
    assert parameters["stage_version"] == 7
    assert server.cancelled == []


def test_an_artifact_that_is_not_here_is_the_workers_mlflows(store: Store) -> None:
    with pytest.raises(DensePathError, match="workers need the same MLflow as this"):
        run(store, Answers([Scheduled(), ran("f" * 32)]))


@pytest.mark.parametrize(
    ("state", "kind", "words"),
    [
        (Failed(message="no text in data.jsonl"), DensePathError, "^no text in data.jsonl$"),
        (Failed(name="Refused", message="sft: 8 processes"), UsageError, "^sft: 8 processes$"),
        (Cancelled(), DensePathError, "flow run my backbone on the work pool gpu/night ended as Cancelled"),
        (Completed(), DensePathError, "ended as Completed"),
    ],
)
def test_a_failure_is_told_in_the_workers_words(
    store: Store, state: State[Any], kind: type[DensePathError], words: str
) -> None:
    with pytest.raises(kind, match=words) as failure:
        run(store, Answers([Scheduled(), state]))
    assert type(failure.value) is kind


def test_a_crashed_flow_run_is_started_again_but_not_for_ever(store: Store, number: Outcome) -> None:
    crashed = [Scheduled(), Running(), Crashed(message="no heartbeat")]
    assert run(store, Answers(crashed, crashed, [Scheduled(), ran(number.id)])).id == number.id
    server = Answers(crashed, crashed, crashed)
    with pytest.raises(DensePathError, match="ended as Crashed: no heartbeat"):
        run(store, server)
    assert len(server.by_key) == placement.MOST_STARTS


def test_one_that_lives_after_all_goes_on(store: Store, number: Outcome) -> None:
    """The server was away, and has heard no heartbeats."""
    server = Answers([Scheduled(), Crashed(), Crashed(), Running(), ran(number.id)])
    assert run(store, server).id == number.id


@pytest.mark.parametrize("left", [Cancelling(), Cancelled()])
def test_what_another_controller_has_cancelled_is_started_again(
    store: Store, number: Outcome, left: State[Any]
) -> None:
    server = Answers([Running(), left], [Scheduled(), ran(number.id)])
    server.tags = [placement.LEFT]
    assert run(store, server).id == number.id
    assert len(server.by_key) == 2


def test_one_that_is_being_cancelled_is_not_waited_for(store: Store, number: Outcome) -> None:
    """Nobody may ever say that it is cancelled, where its worker is gone."""
    assert run(store, Answers([Cancelling()], [Scheduled(), ran(number.id)])).id == number.id
    with pytest.raises(DensePathError, match="ended as Cancelling"):
        run(store, Answers([Scheduled(), Cancelling()]))


def test_a_flow_run_that_is_over_is_another_ones(store: Store, number: Outcome) -> None:
    """The artifact was deleted since, or what was wrong has been mended."""
    server = Answers([ran("e" * 32)], [Failed(message="earlier")], [Scheduled(), ran(number.id)])
    assert run(store, server).id == number.id
    assert len(server.by_key) == 3


def test_two_controllers_share_a_flow_run(store: Store, number: Outcome) -> None:
    server = Answers([Running()])
    with ThreadPoolExecutor(2) as threads:
        outcomes = [threads.submit(run, store, server, replace(JOB, parent=parent * 32)) for parent in "pq"]
        while len(server.asked) < 2:
            time.sleep(0.01)
        [flow_run] = server.states
        server.states[flow_run] = [ran(number.id)]
    assert [each.result().id for each in outcomes] == [number.id] * 2


def test_what_differs_in_what_is_made_is_another_flow_run(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [
        replace(JOB, config=LabBackboneConfig(seed=4)),
        replace(JOB, inputs={"data": "a" * 32}),
        replace(JOB, not_before=datetime.now(UTC)),
        replace(JOB, stage="subsample", config=SubsampleConfig()),
    ]
    keys = {placement._key(job, "gpu", 1) for job in (JOB, *others)}
    assert len(keys) == 5
    assert placement._key(replace(JOB, parent=None, name="other"), "gpu", 1) in keys
    assert placement._key(JOB, "gpu", 2) not in keys
    assert placement._key(JOB, "cpu", 1) not in keys
    monkeypatch.setattr(placement, "_stage_version", lambda job: 99)
    assert placement._key(JOB, "gpu", 1) not in keys


def test_the_server_may_be_away_for_a_while(store: Store, number: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = httpx.ConnectError("Connection refused")
    assert run(store, Answers([Scheduled(), refused, Running(), refused, refused, ran(number.id)])).id == number.id
    monkeypatch.setenv("DPR_PATIENCE_SECONDS", "0")
    with pytest.raises(DensePathError, match="Prefect server at .* does not answer: Connection refused"):
        run(store, Answers([Scheduled(), refused, refused]))
    asked = httpx.Request("POST", "http://localhost/api")
    conflict = httpx.HTTPStatusError("'stage_version' was unexpected", request=asked, response=httpx.Response(409))
    with pytest.raises(DensePathError, match="refuses this: 'stage_version' was unexpected; .* deploy again with: "):
        run(store, Answers([Scheduled(), conflict]))


def test_what_is_still_waited_for_at_the_end_is_cancelled(store: Store) -> None:
    server = Answers([Scheduled(), Running()])
    told: list[str] = []

    def waiting(pools: WorkPools) -> None:
        try:
            pools.run(JOB, "gpu")
        except DensePathError as error:
            told.append(str(error))

    with WorkPools(store, server) as pools:  # type: ignore[arg-type]
        thread = threading.Thread(target=waiting, args=[pools])
        thread.start()
        assert server.reading.wait(30)
    thread.join(30)
    assert server.cancelled == list(server.states)
    assert len(told) == 1


def test_what_is_started_while_the_run_ends_is_cancelled_too(store: Store) -> None:
    server = Answers([Scheduled(), Running()])
    pools = WorkPools(store, server)  # type: ignore[arg-type]
    start = server.start

    def late(*given: Any) -> Any:
        pools.cancel()
        return start(*given)

    server.start = late  # type: ignore[method-assign]
    with pytest.raises(DensePathError, match="not waited for"):
        pools.run(JOB, "gpu")
    assert server.cancelled == list(server.states)


def test_a_server_that_does_not_answer_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(place: str) -> list[str]:
        raise httpx.ConnectError("Connection refused")

    server = Answers()
    monkeypatch.setattr(server, "check", away)
    with pytest.raises(UsageError, match="Prefect server at .* does not answer: Connection refused"):
        WorkPools(store, server).check(["gpu"])  # type: ignore[arg-type]


def test_places_are_refused_together_and_missing_workers_warned_of(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    pools = WorkPools(store, Answers())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no work pool no1\nthere is no work pool no2"):
        pools.check(["no1", "gpu", "no2", "gpu"])
    assert caplog.messages == ["gpu has no worker"]


@pytest.mark.parametrize(
    ("pool_paused", "queue_paused", "words"),
    [(True, False, "the work pool gpu is paused"), (False, True, "the queue night of the work pool gpu is paused")],
)
def test_what_is_paused_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, pool_paused: bool, queue_paused: bool, words: str
) -> None:
    client = SimpleNamespace(
        read_work_pool=lambda name: SimpleNamespace(is_paused=pool_paused),
        read_work_queue_by_name=lambda name, pool: SimpleNamespace(name=name, is_paused=queue_paused),
        read_workers_for_work_pool=lambda name: [],
    )
    server = placement.Server()
    monkeypatch.setattr(server, "ask", lambda question: question(client))
    monkeypatch.setattr(server, "deployment", lambda pool: uuid4())
    [warning] = server.check("gpu/night")
    assert words in warning
