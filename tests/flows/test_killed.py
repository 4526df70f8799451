"""The tiny pipeline in processes of their own, which are killed in the middle of its long stages and started again."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from dpr_core.config.pipeline import PipelineConfig
from flows import wiring
from tasks.artifacts.store import Store
from tasks.run_stage import Outcome
from tests import forked

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
METHOD = "methods={SPIN: {type: self_play, rounds: 2, pairs: 12, batch_size: 4, max_response_tokens: 12}}"
SMALL_BATCHES = "answer.execution.rollout_rows=1"
STAGES = ("backbone", "sft", "reinforce", "answer", "methods.SPIN")

CHILD = """
import os, signal, sys
from flows import recipes, wiring
from tasks import graph, registry, run_stage
from tasks.artifacts.store import Store

name, count, number, assignments = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
store, current, calls = Store.open(), [], []
checkpoint = run_stage.Workspace.checkpoint

def counted(work, step, state):
    if current[-1] == name:
        calls.append(step)
    if current[-1] == name and len(calls) == count and number == signal.SIGTERM:
        os.kill(os.getpid(), number)
    checkpoint(work, step, state)
    if current[-1] == name and len(calls) == count and number == signal.SIGKILL:
        os.killpg(0, number)

run_stage.Workspace.checkpoint = counted
nodes = wiring.nodes(recipes.load("tests/flows/tiny.yaml", assignments))
outcomes = {}
for node in graph.in_order([node for node in nodes if node.name != "report"]):
    current.append(node.name)
    stage, inputs = registry.stage_named(node.stage), graph.resolved(node, outcomes)
    outcomes[node.name] = run_stage.run_stage(stage, node.config, inputs, store=store, name=node.name)
"""


def child(
    environment: dict[str, str], name: str, count: int, number: signal.Signals, *assignments: str
) -> subprocess.CompletedProcess[str]:
    """Run the pipeline; at the `count`th checkpoint of the stage `name` a signal ends it."""
    return forked.run(["-c", CHILD, name, count, int(number), *assignments], environment, ROOT, new_session=True)


def history(store: Store, run_id: str) -> dict[str, dict[int, set[float]]]:
    """The values of every metric by step, but for those that measure time."""
    client = MlflowClient(store._client.uri)
    names = [name for name in client.get_run(run_id).data.metrics if "per_second" not in name]
    found: dict[str, dict[int, set[float]]] = {}
    for name in names:
        steps = found.setdefault(name, {})
        for metric in client.get_metric_history(run_id, name):
            steps.setdefault(metric.step, set()).add(metric.value)
    return found


def tables(store: Store, run_id: str) -> dict[str, Any]:
    folder = store.fetch(run_id).path.parent / "samples"
    return {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}


@pytest.mark.slow
def test_what_comes_of_a_killed_pipeline_is_what_comes_of_one_in_one_piece(
    tmp_path: Path,
    process_environment: Callable[..., dict[str, str]],
    open_store: Callable[[Path], Store],
    run_graph: Callable[..., dict[str, Outcome]],
    tiny: Callable[..., PipelineConfig],
) -> None:
    every_step = [f"{stage}.execution.checkpoint_steps=1" for stage in STAGES]
    assignments = (METHOD, SMALL_BATCHES, *every_step)
    killed = open_store(tmp_path / "killed")
    kills = [
        ("backbone", 3),
        ("backbone", 9),
        ("sft", 2),
        ("reinforce", 1),
        ("reinforce", 2),
        ("SPIN", 1),
        ("SPIN", 6),
        ("answer DPR on lab", 2),
    ]
    attempts: dict[str, set[str]] = {}
    for name, count in kills:
        ended = child(process_environment(killed.home), name, count, signal.SIGKILL, *assignments)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        [attempt] = killed.records(name=name)
        assert (attempt.status, attempt.finished) == ("RUNNING", False)
        attempts.setdefault(name, set()).add(attempt.id)
    ended = child(process_environment(killed.home), "none", 0, signal.SIGKILL, *assignments)
    assert ended.returncode == 0, ended.stderr
    assert list((killed.home / "work").iterdir()) == []

    whole = open_store(tmp_path / "whole")
    nodes = [node for node in wiring.nodes(tiny(METHOD, SMALL_BATCHES)) if node.name != "report"]
    expected = run_graph(whole, nodes)
    assert len(killed.records()) == len(nodes), "every attempt became the artifact"
    for name, outcome in expected.items():
        [record] = killed.records(name=name)
        assert attempts.get(name, {record.id}) == {record.id}
        assert record.digest == whole.record(outcome.id).digest, name
        assert killed.verify(record.id) == []
        assert history(killed, record.id) == history(whole, outcome.id), name
        assert tables(killed, record.id) == tables(whole, outcome.id), name


@pytest.mark.slow
def test_sigterm_keeps_the_state_first_and_no_step_is_done_twice(
    tmp_path: Path,
    process_environment: Callable[..., dict[str, str]],
    open_store: Callable[[Path], Store],
) -> None:
    store = open_store(tmp_path / "home")
    ended = child(process_environment(store.home), "backbone", 4, signal.SIGTERM, METHOD)
    assert ended.returncode != 0
    assert "terminated by SIGTERM" in ended.stderr
    [record] = store.records()
    assert (record.status, record.reason) == ("KILLED", "Terminated: terminated by SIGTERM")
    assert [path.name for path in (store.home / "work" / record.key / "states").iterdir()] == ["000000004"]
    ended = child(process_environment(store.home), "sft", 2, signal.SIGTERM, METHOD)
    assert "terminated by SIGTERM" in ended.stderr
    [again] = store.records("backbone")
    assert (again.id, again.status) == (record.id, "FINISHED")
    losses = MlflowClient(store._client.uri).get_metric_history(record.id, "train/loss")
    assert [metric.step for metric in losses] == list(range(1, 10 + 5 + 1))
    [record] = store.records("sft")
    assert record.status == "KILLED"
    assert [path.name for path in (store.home / "work" / record.key / "states").iterdir()] == ["000000002"]


def test_the_temporary_server_ends_with_a_process_that_is_killed() -> None:
    """A sleep in its place."""
    code = (
        "import subprocess, time; from flows.embedded import _end_with_this_process\n"
        "server = subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL); "
        "watcher = _end_with_this_process(server.pid)\n"
        "print(server.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    server = Path("/proc") / process.stdout.readline().strip() / "cmdline"
    assert server.read_bytes().startswith(b"sleep")
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while lives(server) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not lives(server)


def lives(server: Path) -> bool:
    """Of what has ended and is not yet waited for, the command line is empty."""
    try:
        return bool(server.read_bytes())
    except OSError:
        return False
