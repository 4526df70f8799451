"""A stage that several processes do: the same result, one MLflow run, and what becomes of those that end too soon."""

import dataclasses
import json
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
from pydantic import ValidationError
from safetensors.torch import load_file

from dpr_core.config.data import LabSourceConfig, SubsampleConfig, TemplateConfig
from dpr_core.config.execution import LaunchConfig
from dpr_core.config.model import LabBackboneConfig, PretrainedBackboneConfig
from dpr_core.config.training import SFTConfig
from dpr_core.errors import DensePathError, UsageError
from dpr_core.models.checkpoints import save
from tasks.artifacts.store import Store
from tasks.graph import Node, Planned, preflight
from tasks.launch.launcher import NO_DEFAULTS, check_machine, command
from tasks.launch.machines import free_port
from tasks.registry import stage_named
from tasks.run_stage import Outcome, run_stage
from tasks.running.shutdown import Terminated
from tests.conftest import TinyModel

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[3]
STEPS = 12


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
        if step == self.step:
            self.do()

    def part(self, what: str, done: int, total: int) -> None:
        """Not looked at."""


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_make_what_one_makes_and_report_it_once(here: Here, caplog: pytest.LogCaptureFixture) -> None:
    alone = here.sft(1)
    assert "has work for" not in caplog.text
    together = here.sft(2, datetime.now(UTC))
    assert together.id != alone.id
    # Eight short rows are one micro-batch, in each of the steps.
    assert caplog.text.count("has work for 1 of 2 processes at a time") == 1
    for part in ("0.5", "1.0", "ema"):
        assert_same(here.weights(together.id, part), here.weights(alone.id, part))
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
        return max(int(state.name) for state in home.glob("work/*/states/*"))

    with pytest.raises(DensePathError, match="^sft: rank 1 of its 2 processes was killed by SIGKILL"):
        here.sft(2, now, At(4, lambda: processes(home)[1].kill()))
    assert state_of_the_only_attempt("FAILED", "rank 1", "SIGKILL") == 3
    with pytest.raises(Terminated):
        here.sft(4, now, At(8, lambda: os.kill(os.getpid(), signal.SIGTERM)), strategy="fsdp")
    assert state_of_the_only_attempt("KILLED", "SIGTERM") == 8
    made = here.sft(1, now)
    assert_same(here.weights(made.id), whole)
    assert sorted(here.steps(made.id)) == sorted([*range(1, STEPS + 1), 4, STEPS])  # its results are told at the last


PARENT = """
import logging, sys
from dpr_core.config.training import SFTConfig
from tasks.run_stage import run_stage
from tasks.registry import stage_named
from tasks.artifacts.store import Store
logging.basicConfig(level=logging.INFO)
config = SFTConfig.model_validate_json(sys.argv[1])
run_stage(stage_named("sft"), config, {"data": sys.argv[2]}, store=Store.open())
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
    monkeypatch.setattr("tasks.launch.launcher.usable_cores", lambda: 13)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if omp is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", omp)
    launch = LaunchConfig(processes=4)
    parts = command(launch, execution.get("threads"), Path("settings"), "there", 0, 0)
    assert parts[parts.index("--num_cpu_threads_per_process") + 1] == str(threads)
    assert parts[parts.index("--num_processes") + 1] == "4"
    assert parts[-1] == "there"


def test_what_accelerate_finds_in_the_user_s_home_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Such a file would take the GPUs that it names, whatever CUDA_VISIBLE_DEVICES says, or end the stage."""
    from accelerate.commands import launch as accelerate
    from accelerate.commands.config import config_args

    theirs, ours = tmp_path / "default_config.yaml", tmp_path / "accelerate.json"
    theirs.write_text("compute_environment: LOCAL_MACHINE\ngpu_ids: '0'\ndebug: true\nnobody_knows: this\n")
    ours.write_text(json.dumps(NO_DEFAULTS))
    for module in (accelerate, config_args):
        monkeypatch.setattr(module, "default_config_file", str(theirs))
        monkeypatch.setattr(module, "default_yaml_config_file", str(theirs), raising=False)
    parts = command(LaunchConfig(processes=2), None, ours, "there", 0, 0)
    asked = accelerate.launch_command_parser().parse_args(parts[parts.index("--multi_gpu") :])
    settled = accelerate._validate_launch_command(asked)[0]
    assert (settled.gpu_ids, settled.debug, settled.num_processes, settled.use_fsdp) == ("all", False, 2, False)


# Several machines


def join(here: Here, port: int, **environment: str) -> "subprocess.Popen[bytes]":
    """Another machine, which is this one as well."""
    command = [sys.executable, "-m", "flows.cli", "join", f"127.0.0.1:{port}", "--once"]
    known = {**os.environ, "PYTHONPATH": str(ROOT), "DPR_HOME": str(here.store.home)}
    return subprocess.Popen(command, env=known | environment, stderr=subprocess.PIPE)


def machines(port: int, **changes: Any) -> dict[str, Any]:
    return {"machines": 2, "main_address": "127.0.0.1", "main_port": port, "join_minutes": 2, **changes}


@pytest.mark.slow
def test_two_machines_make_what_one_process_makes(here: Here, tmp_path: Path) -> None:
    """One that knocks has another DPR_HOME, and so no secret; one is killed; and one goes on with it to the end."""
    alone = here.sft(1)
    port, now = free_port(), datetime.now(UTC)
    (tmp_path / "elsewhere").mkdir()
    stranger = join(here, port, DPR_HOME=str(tmp_path / "elsewhere"))
    killed = join(here, port)
    try:
        with pytest.raises(DensePathError, match="^sft: (machine .*, of ranks 1 to 1,|rank 1 of its 2 processes) "):
            here.sft(2, now, At(4, killed.kill), launch=machines(port))
        _, said = stranger.communicate(timeout=60)
        assert (stranger.returncode, b"does not know the secret" in said) == (2, True)
        wait_until(lambda: processes(here.store.home) == {})
    finally:
        stranger.kill()
        killed.kill()
    second = join(here, port)
    try:
        together = here.sft(2, now, launch=machines(port))
        _, said = second.communicate(timeout=60)
        assert (second.returncode, b"sft: joined" in said) == (0, True)
    finally:
        second.kill()
    assert_same(here.weights(together.id), here.weights(alone.id))
    assert set(here.steps(together.id)) == set(here.steps(alone.id))


def test_where_nobody_joins_the_stage_fails_and_says_what_to_run(here: Here) -> None:
    port = free_port()
    with pytest.raises(UsageError, match=r"2 machines need execution\.launch\.main_address"):
        here.sft(2, launch={"machines": 2})
    said = f"1 of its 2 machines have not joined within 0.01 minutes .*: dpr join 127.0.0.1:{port}$"
    with pytest.raises(DensePathError, match=said):
        here.sft(2, launch=machines(port, join_minutes=0.01))


def test_each_machine_needs_gpus_for_its_own_share(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = LaunchConfig(processes=16, machines=2, main_address="first")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    check_machine("sft", launch)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    with pytest.raises(UsageError, match="is 16 on 2 machines, .* this machine has 4; set it to 8"):
        check_machine("sft", launch)
    with pytest.raises(ValidationError, match="9 processes cannot be shared out equally over 2 machines"):
        LaunchConfig(processes=9, machines=2)
