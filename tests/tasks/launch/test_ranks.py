"""A stage of several ranks, by dpr and by other launchers: one result, one MLflow run, and what becomes of failures."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from dpr_core.config.data import LabSourceConfig, SubsampleConfig, TemplateConfig
from dpr_core.config.execution import ExecutionConfig, LaunchConfig
from dpr_core.config.model import LabBackboneConfig, PretrainedBackboneConfig
from dpr_core.config.training import SFTConfig
from dpr_core.errors import DensePathError, UsageError
from dpr_core.models.checkpoints import save
from tasks.artifacts.store import Store
from tasks.graph import Node, Planned, preflight
from tasks.launch.ranks import ranks_environment, run_ranks
from tasks.registry import stage_named
from tasks.run_stage import Outcome, StageJob, run_stage
from tasks.running.shutdown import Terminated
from tests.conftest import TinyModel

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]
STEPS = 48
"""Enough that a process is found and killed before the last."""


@dataclasses.dataclass
class Here:
    """A store with the real stages, and demonstrations and a backbone to fine-tune."""

    store: Store
    data: str
    settings: dict[str, Any]

    def config(
        self, processes: int, strategy: str = "ddp", launch: dict[str, Any] | None = None, **changes: Any
    ) -> SFTConfig:
        launch = {"processes": processes, "strategy": strategy, **(launch or {})}
        execution = {"launch": launch, "checkpoint_steps": 3}
        return SFTConfig.model_validate({**self.settings, **changes, "execution": execution})

    def sft(self, processes: int, since: datetime | None = None, progress: Any = None, **changes: Any) -> Outcome:
        """Fine-tune, whatever was made before that moment."""
        return run_stage(
            stage_named("sft"),
            self.config(processes, **changes),
            {"data": self.data},
            store=self.store,
            not_before=since,
            progress=progress,
            in_ranks=run_ranks,
        )

    def weights(self, run_id: str, part: str = "1.0") -> dict[str, torch.Tensor]:
        return load_file(self.store.fetch(run_id).path / "checkpoints" / part / "model.safetensors")

    def steps(self, run_id: str) -> list[int]:
        """At which steps a loss was logged."""
        client = MlflowClient(self.store._client.uri)
        return [metric.step for metric in client.get_metric_history(run_id, "train/loss")]


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch, tiny: TinyModel, tmp_path: Path) -> Here:
    monkeypatch.undo()
    monkeypatch.setenv("DPR_HOME", str(home))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = Store.open()
    data = SubsampleConfig(source=LabSourceConfig(rows=64), size=48, template=TemplateConfig(text="{prompt}\n"))
    model, tokenizer = tiny()
    save(model, tokenizer, tmp_path / "model")
    settings = {
        "backbone": PretrainedBackboneConfig(name=str(tmp_path / "model"), dtype="float32").model_dump(),
        "batch_size": 48 * 2 // STEPS,
        "epochs": 2,
        "learning_rate": 1e-2,
        "ema_decay": 0.9,
    }
    return Here(store, run_stage(stage_named("subsample"), data, {}, store=store).id, settings)


def processes(home: Path) -> dict[int, psutil.Process]:
    """Those that work for a home, by rank."""
    found = {}
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("DPR_HOME") == str(home) and "tasks.launch.worker" in process.cmdline()
            if ours and "RANK" in process.environ():
                found[int(process.environ()["RANK"])] = process
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


class At:
    """A progress display that does something once so many steps are done."""

    def __init__(self, step: int, do: Callable[[], None]) -> None:
        self.step, self.do = step, do

    def advance(self, step: int, total: int, note: str = "", at_most: bool = False) -> None:
        if step >= self.step:
            self.step = STEPS + 10**6
            self.do()

    def part(self, what: str, done: int, total: int) -> None:
        """Not looked at."""


def difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest, of all weights."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_make_what_one_makes_and_report_it_once(here: Here, caplog: pytest.LogCaptureFixture) -> None:
    alone = here.sft(1)
    assert "has work for" not in caplog.text
    together = here.sft(2, datetime.now(UTC))
    assert together.id != alone.id
    # Two short rows are one micro-batch, in each of the steps.
    assert caplog.text.count("has work for 1 of 2 processes at a time") == 1
    for part in ("0.5", "1.0", "ema"):
        assert difference(here.weights(together.id, part), here.weights(alone.id, part)) < 1e-6
    assert here.steps(together.id) == here.steps(alone.id)
    records = {record.id: record for record in here.store.records("sft")}
    assert records.keys() == {alone.id, together.id}
    assert records[together.id].key == records[alone.id].key
    assert records[together.id].results.keys() == records[alone.id].results.keys()
    assert not list((here.store.home / "work").iterdir())


@pytest.mark.slow
def test_what_is_interrupted_goes_on_with_another_number_of_processes(here: Here) -> None:
    """A process is killed; then the stage, its model sharded, is terminated; and then it comes to its end."""
    whole = here.weights(here.sft(1).id)
    home, now = here.store.home, datetime.now(UTC)

    def state_of_the_only_attempt(status: str, *words: str) -> int:
        assert processes(home) == {}
        [attempt] = [record for record in here.store.records("sft") if not record.finished]
        assert attempt.status == status
        assert all(word in attempt.reason for word in words)
        return max(int(state.name) for state in home.glob("work/*/states/*[0-9]"))

    with pytest.raises(DensePathError, match="^sft: rank 1 of its 2 processes was killed by SIGKILL"):
        here.sft(2, now, At(4, lambda: processes(home)[1].kill()))
    assert state_of_the_only_attempt("FAILED", "rank 1", "SIGKILL") >= 3
    with pytest.raises(Terminated):
        here.sft(4, now, At(24, lambda: os.kill(os.getpid(), signal.SIGTERM)), strategy="fsdp")
    assert state_of_the_only_attempt("KILLED", "SIGTERM") >= 24
    made = here.sft(1, now)
    assert_same(here.weights(made.id), whole)
    assert set(here.steps(made.id)) == set(range(1, STEPS + 1))


PARENT = """
import logging, sys
from dpr_core.config.training import SFTConfig
from tasks.run_stage import run_stage
from tasks.registry import stage_named
from tasks.artifacts.store import Store
from tasks.launch.ranks import run_ranks
logging.basicConfig(level=logging.INFO)
config = SFTConfig.model_validate_json(sys.argv[1])
run_stage(stage_named("sft"), config, {"data": sys.argv[2]}, store=Store.open(), in_ranks=run_ranks)
"""


@pytest.mark.slow
def test_no_process_outlives_the_one_that_started_it(here: Here) -> None:
    endless = here.config(2, epochs=10**4).model_dump_json()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, endless, here.data], env=environment)
    home = here.store.home
    try:
        wait_until(lambda: list(home.glob("work/*/states/*[0-9]")))
        left = [psutil.Process(process.pid) for process in processes(home).values()]
        launcher = left[0].parent()
        assert (len(left), launcher is not None) == (2, True)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_until(lambda: not any(alive(process) for process in (*left, launcher)))


def alive(process: psutil.Process | None) -> bool:
    return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_what_is_wrong_in_the_processes_is_told_as_by_one(here: Here) -> None:
    with pytest.raises(UsageError) as alone:
        here.sft(1, checkpoints=[0.01, 1.0])
    with pytest.raises(UsageError) as together:
        here.sft(2, checkpoints=[0.01, 1.0])
    assert str(together.value) == str(alone.value)
    assert {record.status for record in here.store.records("sft")} == {"FAILED"}
    assert processes(here.store.home) == {}


def test_more_processes_than_gpus_and_stages_of_one_process_are_refused_before_any_work(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    with pytest.raises(UsageError, match="sft: execution.launch.processes is 8, .* this machine has 4; set it to 4"):
        here.sft(8)
    shared = LabBackboneConfig.model_validate({"execution": {"launch": {"processes": 2}}})
    nodes = [Node("first", "subsample", SubsampleConfig(), {}), Node("second", "backbone", shared, {})]
    for ask in (
        lambda: preflight(nodes, [Planned(node.name, node.stage, "run", None, "") for node in nodes]),
        lambda: run_stage(stage_named("backbone"), shared, {}, store=here.store),
    ):
        with pytest.raises(UsageError, match="^backbone is done by one process, not 2"):
            ask()
    assert here.store.records("sft") == here.store.records("backbone") == []


@pytest.mark.parametrize(
    ("execution", "omp", "threads"), [({}, None, 3), ({}, "5", 5), ({"threads": 2}, "5", 2), ({}, "odd", 3)]
)
def test_without_more_being_said_each_process_gets_its_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch, execution: dict[str, int], omp: str | None, threads: int
) -> None:
    monkeypatch.setattr("tasks.launch.ranks.usable_cores", lambda: 13)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    if omp is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", omp)
    launch = LaunchConfig(processes=4)
    config = SFTConfig(execution=ExecutionConfig(launch=launch, **execution))
    variables = ranks_environment(StageJob("sft", "sft", config, {}, None), launch)
    assert variables["OMP_NUM_THREADS"] == str(threads)
    assert "ACCELERATE_USE_FSDP" not in variables


# Other launchers

TORCHRUN = ("torch.distributed.run", "--nproc-per-node", "2", "--standalone")
ACCELERATE = (
    "accelerate.commands.launch",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
    "--multi_gpu",
    "--main_process_port",
    "0",
)


def launched(home: Path, launcher: tuple[str, ...], *job: object, **more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", *launcher, "-m", "tasks.launch.worker", *map(str, job)]
    known = {**os.environ, "PYTHONPATH": str(ROOT), "DPR_HOME": str(home), "OMP_NUM_THREADS": "1", **more}
    return subprocess.Popen(command, env=known, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "strategy"), [(TORCHRUN, "ddp"), (ACCELERATE, "fsdp")])
def test_any_launcher_starts_the_same_ranks(
    here: Here, tmp_path: Path, launcher: tuple[str, ...], strategy: str
) -> None:
    alone = here.sft(1)
    job = StageJob("sft", "sft", here.config(1, strategy), {"data": here.data}, None, datetime.now(UTC))
    (tmp_path / "job.json").write_text(job.to_json())
    started = launched(here.store.home, launcher, tmp_path / "job.json")
    said, _ = started.communicate(timeout=200)
    assert started.returncode == 0, said
    [together] = {record.id for record in here.store.records("sft")} - {alone.id}
    assert f"sft: {together} ran in " in said
    assert difference(here.weights(together), here.weights(alone.id)) < 1e-6
    assert not list((here.store.home / "work").iterdir())

    again = launched(here.store.home, launcher, "rerun", together, "seed=0")
    said, _ = again.communicate(timeout=200)
    assert (again.returncode, f"{alone.id} reused" in said) == (0, True), said


@pytest.mark.slow
def test_a_sigterm_that_reaches_all_ranks_keeps_the_state_and_ends_the_run_as_killed(
    here: Here, tmp_path: Path
) -> None:
    job = StageJob("sft", "sft", here.config(1, epochs=10**4), {"data": here.data}, None)
    (tmp_path / "job.json").write_text(job.to_json())
    started = launched(here.store.home, TORCHRUN, tmp_path / "job.json")
    try:
        wait_until(lambda: list(here.store.home.glob("work/*/states/*[0-9]")))
        for process in processes(here.store.home).values():
            process.terminate()
        said, _ = started.communicate(timeout=100)
    finally:
        started.kill()
    [record] = here.store.records("sft")
    assert (record.status, "SIGTERM" in record.reason) == ("KILLED", True), said
    [output] = here.store.home.glob("work/*/output")
    assert list(output.parent.glob("states/*[0-9]/SEAL.json")), said


def test_where_no_launcher_started_it_a_rank_says_what_to_do(here: Here) -> None:
    done = launched(here.store.home, ("tasks.launch.worker",))
    said, _ = done.communicate(timeout=100)
    assert (done.returncode, "RANK is not set: a launcher, such as torchrun" in said) == (2, True), said


@pytest.mark.slow
def test_a_rank_that_hangs_is_waited_for_as_long_as_is_set(here: Here) -> None:
    stop = At(4, lambda: processes(here.store.home)[1].suspend())
    with pytest.raises(DensePathError, match="^sft: rank 0 has waited 0.2 minutes for the others"):
        here.sft(2, progress=stop, launch={"timeout_minutes": 0.2})
    assert processes(here.store.home) == {}
    assert [record.status for record in here.store.records("sft")] == ["FAILED"]
