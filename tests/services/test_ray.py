"""Stages on a Ray cluster, with three nodes on this machine: as one process makes them, and with nodes that are lost.

Ray is too heavy for what every change installs, so that these tests are skipped there: pip install '.[cluster]'.
"""

import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from deployments.servers import Server, free_port, mlflow_server, running
from dpr_core.errors import DensePathError
from flows import recipes, wiring
from tasks.artifacts.store import Store
from tasks.graph import in_order, rerun_nodes, resolved
from tasks.launch.ranks import run_ranks
from tasks.registry import stage_named
from tasks.run_stage import Outcome, run_stage
from tasks.running.shutdown import Terminated
from tests.flows.conftest import TINY, environment

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[cluster]'")

pytestmark = pytest.mark.services

ITERATIONS = 16
"""REINFORCE lasts long enough to be met in it."""

LEASE_SECONDS = 15
"""Then a run whose rank 0 is lost is another's."""


class Cluster:
    """A head without cores, and nodes with one each; every node has a home of its own."""

    def __init__(self, folder: Path, tracking: str) -> None:
        self._folder = folder
        self._tracking = tracking
        self._nodes = ExitStack()
        self._servers: dict[str, Server] = {}
        self.address = f"{_own_address()}:{free_port()}"
        self.node("head")

    def node(self, name: str) -> None:
        """A new node, once it has joined."""
        host, _, port = self.address.partition(":")
        if name == "head":
            where = ["--head", f"--port={port}", f"--ray-client-server-port={free_port()}", "--include-dashboard=false"]
            where += [f"--temp-dir={self._folder / 'ray'}", "--num-cpus=0"]
        else:
            where = [f"--address={self.address}", "--num-cpus=1"]
        ours = environment(
            self._folder / name,
            MLFLOW_TRACKING_URI=self._tracking,
            DPR_STATES=f"file://{self._folder}/states",
            DPR_LEASE_SECONDS=str(LEASE_SECONDS),
            RAY_ADDRESS=self.address,
            RAY_DISABLE_DOCKER_CPU_WARNING="1",
            RAY_memory_monitor_refresh_ms="0",
            RAY_worker_niceness="0",
        )
        options = ["--block", "--disable-usage-stats", "--object-store-memory=80000000", "--num-gpus=0"]
        options += [f"--node-ip-address={host}", f"--node-name={name}"]
        server = Server(
            [
                sys.executable,
                "-m",
                "ray.scripts.scripts",
                "start",
                *options,
                *where,
            ],
            self._folder / f"{name}.log",
            lambda: _has_joined(self.address, name),
            environment=ours,
        )
        self._servers.pop(name, None)
        self._nodes.enter_context(running(server))
        self._servers[name] = server

    def kill_raylet_of(self, rank: int) -> None:
        self.lost = next(name for name, server in self._servers.items() if rank in ranks_of(server))
        [raylet] = [each for each in self._servers[self.lost].processes() if each.name() == "raylet"]
        raylet.kill()

    def rank(self, rank: int) -> psutil.Process:
        [process] = [found[rank] for server in self._servers.values() if rank in (found := ranks_of(server))]
        return process

    def kill_head(self) -> None:
        self._servers["head"].stop(signal.SIGKILL)

    def restart_the_lost(self) -> None:
        self._servers[self.lost].stop(signal.SIGKILL)
        self.node(self.lost)

    def end(self) -> None:
        self._nodes.close()


def ranks_of(server: Server) -> dict[int, psutil.Process]:
    """The ranks that run on a node."""
    found = {}
    for process in server.processes():
        with suppress(psutil.Error):
            if "tasks.launch.worker" in process.cmdline():
                found[int(process.environ()["RANK"])] = process
    return found


def _own_address() -> str:
    import ray

    return str(ray.util.get_node_ip_address())


def _has_joined(address: str, name: str) -> bool:
    import ray
    from ray._raylet import GcsClient

    with socket.socket() as probe:
        if probe.connect_ex((address.partition(":")[0], int(address.partition(":")[2]))):
            return False
    found = GcsClient(address=address).get_all_node_info(timeout=30).values()
    alive = ray.core.generated.gcs_pb2.GcsNodeInfo.GcsNodeState.ALIVE
    return any(node.node_name == name and node.state == alive for node in found)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Ray's sockets do not fit into pytest's own folder.
    folder = Path(tempfile.mkdtemp(prefix="dpr-", dir="/tmp"))
    (folder / "states").mkdir()
    server, tracking = mlflow_server(
        folder / "mlflow",
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow/runs.db",
        "--artifacts-destination",
        str(folder / "mlflow/artifacts"),
    )
    with running(server), pytest.MonkeyPatch.context() as patch:
        for name, value in environment(folder / "here").items():
            patch.setenv(name, value)
        patch.setenv("MLFLOW_TRACKING_URI", tracking)
        patch.setenv("DPR_STATES", f"file://{folder}/states")
        patch.setenv("DPR_LEASE_SECONDS", str(LEASE_SECONDS))
        cluster = Cluster(folder, tracking)
        patch.setenv("RAY_ADDRESS", cluster.address)
        try:
            cluster.node("a")
            cluster.node("b")
            yield cluster
        finally:
            cluster.end()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def made(cluster: Cluster) -> dict[str, Outcome]:
    """The tiny pipeline up to REINFORCE, by one process."""
    store, outcomes = Store.open(), {}
    for node in in_order(wiring.nodes(recipes.load(str(TINY), [f"reinforce.iterations={ITERATIONS}"]))):
        if node.name in ("backbone", "subsample", "sft", "reward", "reinforce"):
            inputs = resolved(node, outcomes)
            outcomes[node.name] = run_stage(stage_named(node.stage), node.config, inputs, store=store, name=node.name)
    return outcomes


class Watching:
    """A progress display that does something at a step."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self._at, self._act = at, act
        self.acted = False

    def advance(self, step: int, total: int | None, note: str = "", at_most: bool = False) -> None:
        if step >= self._at and not self.acted:
            self.acted = True
            self._act()

    def part(self, what: str, done: int, total: int) -> None:
        pass


def again(made: Outcome, progress: Any = None, since: datetime | None = None, **launch: object) -> Outcome:
    """The same stage once more, by two ranks on Ray."""
    store = Store.open()
    settings = {"engine": "ray", "processes": 2, **launch}
    sets = [f"execution.launch.{name}={value}" for name, value in settings.items()]
    # A step is some micro-batches, so that both have something to do.
    sets += ["execution.checkpoint_steps=1", "execution.tokens_per_micro_batch=96"]
    [node] = rerun_nodes(store, made.id, sets, downstream=False)
    return run_stage(
        stage_named(node.stage),
        node.config,
        node.inputs,
        store=store,
        name=node.name,
        not_before=since or datetime.now(UTC),
        progress=progress,
        in_ranks=run_ranks,
    )


def worst_difference(one: str, two: str) -> float:
    """Of any weight of two artifacts."""
    store = Store.open()
    folders = [store.fetch(run_id).path for run_id in (one, two)]
    files = sorted(path.relative_to(folders[0]) for path in folders[0].rglob("*.safetensors"))
    assert files
    worst = 0.0
    for file in files:
        weights = [load_file(folder / file) for folder in folders]
        assert weights[0].keys() == weights[1].keys()
        worst = max(worst, *(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]))
    return worst


@pytest.mark.parametrize("stage", ["sft", "reinforce"])
def test_two_ranks_on_two_nodes_make_what_one_process_makes(
    made: dict[str, Outcome], stage: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = {record.id for record in Store.open().records()}
    with caplog.at_level("INFO", "dense_path"):
        two = again(made[stage])
    assert two.status == "ran"
    assert "2 ranks on Ray" in caplog.text
    assert_as_one_process_makes_it(made[stage], two, before)


@pytest.mark.parametrize("rank", [1, 0])
def test_those_that_are_left_go_on_where_a_node_is_lost(
    cluster: Cluster, made: dict[str, Outcome], rank: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Its raylet alone is killed: what it had started ends with it."""
    before = {record.id for record in Store.open().records()}
    watching = Watching(8, lambda: cluster.kill_raylet_of(rank))
    with caplog.at_level("INFO", "dense_path"):
        one = again(made["reinforce"], watching)
    assert watching.acted
    assert caplog.text.index("2 ranks on Ray") < caplog.text.index("1 ranks on Ray")
    assert_as_one_process_makes_it(made["reinforce"], one, before)
    cluster.restart_the_lost()


def test_a_rank_that_is_killed_is_begun_again_with_the_others(
    cluster: Cluster, made: dict[str, Outcome], caplog: pytest.LogCaptureFixture
) -> None:
    before = {record.id for record in Store.open().records()}
    watching = Watching(8, lambda: cluster.rank(1).kill())
    with caplog.at_level("INFO", "dense_path"):
        two = again(made["reinforce"], watching, fewest=2)
    assert caplog.text.count("2 ranks on Ray") == 2
    assert_as_one_process_makes_it(made["reinforce"], two, before)


def test_a_rank_that_is_always_killed_fails_the_stage_in_a_sentence(cluster: Cluster, made: dict[str, Outcome]) -> None:
    watching = Watching(2, lambda: cluster.rank(1).kill())
    with pytest.raises(DensePathError, match="reinforce: rank 1 of its 2 processes was killed by SIGKILL"):
        again(made["reinforce"], watching, retries=0)


def test_too_few_that_are_left_are_not_waited_for_without_end(cluster: Cluster, made: dict[str, Outcome]) -> None:
    watching = Watching(2, lambda: cluster.kill_raylet_of(1))
    with pytest.raises(DensePathError, match="no rank has run for .* has 1 CPUs, and launch.fewest is 2"):
        again(made["reinforce"], watching, fewest=2, timeout_minutes=2)
    cluster.restart_the_lost()


def test_a_rank_that_hangs_fails_the_stage_in_a_sentence(cluster: Cluster, made: dict[str, Outcome]) -> None:
    watching = Watching(2, lambda: cluster.rank(1).suspend())
    with pytest.raises(DensePathError, match="reinforce: rank 0 has waited 2 minutes for the others"):
        again(made["reinforce"], watching, timeout_minutes=2)
    assert watching.acted


def test_a_termination_keeps_what_is_done(cluster: Cluster, made: dict[str, Outcome]) -> None:
    before, since = {record.id for record in Store.open().records()}, datetime.now(UTC)
    with pytest.raises(Terminated):
        again(made["reinforce"], Watching(3, lambda: signal.raise_signal(signal.SIGTERM)), since)
    [run] = {record.id for record in Store.open().records()} - before
    assert Store.open().record(run).status == "KILLED"
    steps: list[int] = []
    watching = Watching(0, lambda: None)
    watching.advance = lambda step, *_: steps.append(step)  # type: ignore[method-assign]
    assert again(made["reinforce"], watching, since).id == run
    assert min(steps) > 2
    assert worst_difference(made["reinforce"].id, run) <= 1e-6


def test_a_cluster_that_is_not_there_is_said_in_a_sentence(
    made: dict[str, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    with pytest.raises(DensePathError, match="sft: this machine cannot take part in the Ray cluster at RAY_ADDRESS="):
        again(made["sft"])


def test_one_machine_goes_on_where_the_cluster_is_gone(cluster: Cluster, made: dict[str, Outcome]) -> None:
    """The last of these tests: the head is killed."""
    before, since = {record.id for record in Store.open().records()}, datetime.now(UTC)
    with pytest.raises(DensePathError, match="reinforce: the Ray cluster is gone"):
        again(made["reinforce"], Watching(3, cluster.kill_head), since)
    one = again(made["reinforce"], None, since, engine="processes", processes=1)
    assert_as_one_process_makes_it(made["reinforce"], one, before)


def assert_as_one_process_makes_it(one: Outcome, other: Outcome, before: set[str]) -> None:
    store = Store.open()
    assert {record.id for record in store.records()} - before == {other.id}, "it was made once"
    assert store.verify(other.id) == []
    worst = worst_difference(one.id, other.id)
    print(other.stage, "worst difference", worst, "seconds", other.seconds)
    assert worst <= 1e-6
