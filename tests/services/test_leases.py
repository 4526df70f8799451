"""Hosts that share an MLflow server: killed, stopped, cut off, resumed by two at once. Each stage is made once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deployments.servers import Server, mlflow_server, running
from deployments.stack import ROOT
from tasks.artifacts.store import Store
from tests.services.conftest import UNDISTURBED, history
from tests.services.test_stack import environment, small, until

pytestmark = pytest.mark.services

LAPSE = 6.0

STAGE = """
import sys
from tasks.artifacts.store import Store
from tasks.run_stage import run_stage
from tests.services.conftest import Steps, training
store = Store.open(retry=True)
print("there", flush=True)
print(run_stage(training(seconds=float(sys.argv[1])), Steps(), {}, store=store).status)
"""

KEPT = ("sft.execution.checkpoint_steps=1", "reinforce.execution.checkpoint_steps=1")

Host = subprocess.Popen[str]
Start = Callable[..., Host]


@pytest.fixture
def server(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    folder = tmp_path / "server"
    store = ("--backend-store-uri", f"sqlite:///{folder}/runs.db", "--artifacts-destination", str(folder / "artifacts"))
    found, address = mlflow_server(folder, *store)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with running(found):
        yield found


@pytest.fixture
def start(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """`start(home, *words)`: a process of another host, which is ended if the test does not end it."""
    started: list[Host] = []

    def begin(home: str, *words: str, **more: str) -> Host:
        own = more | {"DPR_HOME": str(tmp_path / home), "DPR_LEASE_SECONDS": str(LAPSE), "NO_PROXY": "127.0.0.1"}
        env = environment(**own, MLFLOW_TRACKING_URI=os.environ["MLFLOW_TRACKING_URI"])
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen([sys.executable, *words], env=env, cwd=ROOT, text=True, **pipes))
        return started[-1]

    yield begin
    for each in started:
        if each.poll() is None:
            each.send_signal(signal.SIGCONT)
            each.kill()
            each.communicate()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """Digests by stages, up to REINFORCE, where one process made all of them."""
    home = tmp_path_factory.mktemp("undisturbed") / "home"
    command = [sys.executable, "-m", "flows.cli", "run", *small(*KEPT), "--json"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    alone = subprocess.Popen(command, env=environment(DPR_HOME=str(home)), cwd=ROOT, **quiet)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPR_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        until((home / "ID").exists)
        store = Store.open(retry=True)
        until(lambda: any(record.finished for record in store.records("reinforce")))
        alone.kill()
        alone.wait()
        return {record.stage: record.digest for record in store.records() if record.finished}


def amid_steps(store: Store) -> str:
    """The ID of the one run, once it has logged something."""

    def found() -> str:
        records = store.records()
        return records[0].id if records and history(store, records[0].id) else ""

    run_id: str = until(found)
    return run_id


def test_what_a_killed_host_was_at_is_taken_over_in_the_same_run(start: Start) -> None:
    store = Store.open()
    one = start("one", "-c", STAGE, "1")
    run_id = amid_steps(store)
    another = start("another", "-c", STAGE, "0")
    one.kill()
    killed = time.monotonic()
    said, told = another.communicate(timeout=120)
    assert (said, another.returncode) == ("there\nran\n", 0), told
    assert time.monotonic() - killed > LAPSE / 2
    assert [(record.id, record.status) for record in store.records()] == [(run_id, "FINISHED")]
    assert store.verify(run_id) == []
    assert history(store, run_id) == UNDISTURBED


def test_a_host_that_is_stopped_too_long_publishes_nothing_when_it_goes_on(start: Start) -> None:
    store = Store.open()
    one = start("one", "-c", STAGE, "1")
    run_id = amid_steps(store)
    one.send_signal(signal.SIGSTOP)
    said, told = start("another", "-c", STAGE, "0").communicate(timeout=120)
    assert said == "there\nran\n", told
    published = store.record(run_id)
    one.send_signal(signal.SIGCONT)
    _, told = one.communicate(timeout=120)
    assert one.returncode == 1
    assert "another took it over" in told
    assert store.record(run_id) == published
    assert store.verify(run_id) == []
    assert len(store.records()) == 1


def test_a_server_that_is_away_for_longer_than_a_lease_takes_it_from_nobody(server: Server, start: Start) -> None:
    store = Store.open()
    one = start("one", "-c", STAGE, "1")
    run_id = amid_steps(store)
    another = start("another", "-c", STAGE, "0")
    assert another.stdout is not None
    assert another.stdout.readline() == "there\n"
    time.sleep(LAPSE / 2)
    server.stop(signal.SIGKILL)
    time.sleep(2 * LAPSE)
    server.start()
    for host, status in ((one, "ran"), (another, "reused")):
        said, told = host.communicate(timeout=180)
        assert said.splitlines()[-1:] == [status], told
    assert [(record.id, record.status) for record in store.records()] == [(run_id, "FINISHED")]
    assert store.verify(run_id) == []
    assert history(store, run_id) == UNDISTURBED


@pytest.mark.parametrize(("stage", "how"), [("reinforce", "run"), ("sft", "resume"), ("sft", "run without states")])
def test_another_host_goes_on_from_the_newest_state_of_one_that_was_killed(
    start: Start, tmp_path: Path, undisturbed: dict[str, str | None], stage: str, how: str
) -> None:
    (tmp_path / "states").mkdir()
    shared = {} if "without" in how else {"DPR_STATES": (tmp_path / "states").as_uri()}
    store = Store.open()
    run = ("-m", "flows.cli", "run", *small(*KEPT), "--json")
    one = start("one", *run, **shared)

    def amid() -> tuple[str, int] | None:
        """The stage's run and its newest state, once there are several and it is not at its end."""
        places = [tmp_path / "states"] if shared else list((tmp_path / "one" / "work").glob("*"))
        seals = [seal for place in places for seal in place.rglob("SEAL.json")]
        steps = [int(seal.parent.name) for seal in seals]
        running = [record.id for record in store.records(stage) if record.status == "RUNNING"]
        return (running[0], max(steps)) if running and steps and max(steps) > 3 else None

    run_id, newest = until(amid)
    one.kill()
    another = start("another", *(("-m", "flows.cli", "resume") if how == "resume" else run), **shared)
    until(lambda: store.record(run_id).finished or another.poll() is not None)
    assert another.poll() is None
    [made] = store.records(stage)
    assert (made.id, made.digest) == (run_id, undisturbed[stage])
    assert store.verify(run_id) == []
    assert len(store.parent_runs.all()) == 1
    name = "rollout/return" if stage == "reinforce" else "train/loss"
    logged = store._client.get_metric_history(run_id, name)
    steps = [each.step for each in logged]
    # At its last step a stage logs its results, too.
    values = {(each.step, each.value) for each in logged if each.step < max(steps)}
    assert len({step for step, _ in values}) == len(values), "a step that is logged twice has the same value"
    again = {step for step in steps if steps.count(step) > 1} - {max(steps)}
    if shared:
        assert all(step >= newest - 1 for step in again), f"from {newest} on, not from the beginning: {sorted(again)}"
        until(lambda: not list((tmp_path / "states" / made.key).rglob("*.safetensors")))
    else:
        assert min(steps) in again, "from its beginning"


def test_two_that_resume_at_once_make_each_stage_once(start: Start) -> None:
    store = Store.open()
    one = start("one", "-m", "flows.cli", "run", *small(), "--json")
    until(lambda: any(record.stage == "reinforce" for record in store.records()))
    one.kill()
    plan = start("another", "-m", "flows.cli", "resume", "--plan")
    said, told = plan.communicate(timeout=180)
    assert plan.returncode == 0, told
    assert "interrupted" in said
    assert "dpr resume goes on with 1 of 1" in said
    hosts = [start(home, "-m", "flows.cli", "resume", "--json") for home in ("another", "third")]
    ended = [(*host.communicate(timeout=400), host.returncode) for host in hosts]
    assert sorted(status for *_, status in ended) in ([0, 0], [0, 1]), ended
    for _, told, status in ended:
        if status:
            assert "was finished, or another process goes on with it" in told
    records = store.records()
    assert len({record.key for record in records}) == len(records), "no run was begun twice"
    assert {record.status for record in records} == {"FINISHED"}
    assert [pipeline.status for pipeline in store.parent_runs.all()] == ["FINISHED"]
