"""Two machines that share a stage under torchrun: they have MLflow's server in common, and no file system."""

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deployments.servers import free_port, mlflow_server, running
from tasks.artifacts.store import Store
from tasks.registry import stage_named
from tasks.run_stage import StageJob
from tests.flows.conftest import TINY, environment, run_dpr
from tests.tasks.launch.test_ranks import ACCELERATE, TORCHRUN, processes, wait_until

pytestmark = pytest.mark.services

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    database, files = f"sqlite:///{folder}/runs.db", str(folder / "artifacts")
    found, address = mlflow_server(folder, "--backend-store-uri", database, "--artifacts-destination", files)
    with running(found):
        yield address


@pytest.fixture(scope="module")
def made(server: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The tiny pipeline, by one process on a third machine."""
    done = run_dpr("run", TINY, "--json", home=tmp_path_factory.mktemp("third") / "home", MLFLOW_TRACKING_URI=server)
    assert done.status == 0, done.stderr
    return {stage["name"]: stage["id"] for stage in done.json["stages"]}


@pytest.mark.parametrize(("name", "strategy"), [("sft", "ddp"), ("reinforce", "ddp"), ("reinforce", "fsdp")])
def test_homes_of_their_own_make_what_one_process_makes(
    made: dict[str, str], server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, strategy: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("DPR_HOME", str(tmp_path / "looks"))
    store = Store.open()
    before = store.record(made[name])
    settings = {**before.config, "execution": {**before.config["execution"], "launch": {"strategy": strategy}}}
    config = stage_named(name).config.model_validate(settings)
    file = tmp_path / "job.json"
    file.write_text(StageJob(name, name, config, before.inputs, None, datetime.now(UTC)).to_json())
    where = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *where]
    machines = []
    for number in range(2):
        command = [*torchrun, "--node-rank", str(number), "-m", "tasks.launch.worker", str(file)]
        known = environment(tmp_path / f"home-{number}", MLFLOW_TRACKING_URI=server)
        machines.append(subprocess.Popen(command, env=known, cwd=ROOT, stdout=-1, stderr=-2, text=True))
    said = [machine.communicate(timeout=400)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], json.dumps(said, indent=2)
    together = next(record.id for record in store.records(name) if record.name == name)  # the newest
    assert together != before.id
    ours, theirs = (_weights(store.fetch(run_id).path) for run_id in (together, before.id))
    assert ours.keys() == theirs.keys()
    assert max(float((ours[part] - theirs[part]).abs().max()) for part in ours) < 1e-6
    assert not any(list((tmp_path / f"home-{number}" / "work").iterdir()) for number in range(2))


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE])
def test_two_ranks_of_reinforce_by_another_launcher_make_what_one_process_makes(
    made: dict[str, str], server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: tuple[str, ...]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("DPR_HOME", str(tmp_path / "looks"))
    store = Store.open()
    before = store.record(made["reinforce"])
    config = stage_named("reinforce").config.model_validate(before.config)
    file = tmp_path / "job.json"
    file.write_text(StageJob("reinforce", "reinforce", config, before.inputs, None, datetime.now(UTC)).to_json())
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "tasks.launch.worker", str(file)],
        env=environment(tmp_path / "home", MLFLOW_TRACKING_URI=server),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    together = next(record.id for record in store.records("reinforce") if record.name == "reinforce")  # the newest
    assert together != before.id
    ours, theirs = (_weights(store.fetch(run_id).path) for run_id in (together, before.id))
    assert ours.keys() == theirs.keys()
    assert max(float((ours[part] - theirs[part]).abs().max()) for part in ours) < 1e-6


STAGE = """
import logging, sys
from tasks.run_job import run_job
from tasks.run_stage import StageJob
logging.basicConfig(level=logging.INFO)
run_job(StageJob.of_json(open(sys.argv[1]).read()))
"""


def test_what_a_killed_rank_ended_goes_on_in_this_home_at_once(
    made: dict[str, str], server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 was terminated with it, and the lease may be another's only after an hour."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("DPR_HOME", str(tmp_path / "looks"))
    store = Store.open()
    before = store.record(made["sft"])
    execution = {"checkpoint_steps": 1, "launch": {"processes": 2}}
    config = stage_named("sft").config.model_validate({**before.config, "epochs": 40, "execution": execution})
    file, home = tmp_path / "job.json", tmp_path / "home"
    file.write_text(StageJob("sft", "sft", config, before.inputs, None).to_json())
    command = [sys.executable, "-c", STAGE, str(file)]
    known = environment(home, MLFLOW_TRACKING_URI=server, DPR_LEASE_SECONDS="3600")
    started = subprocess.Popen(command, env=known, cwd=ROOT, stdout=-1, stderr=-2, text=True)
    wait_until(lambda: list(home.glob("work/*/states/*/SEAL.json")) or started.poll() is not None)
    processes(home)[1].kill()
    said, _ = started.communicate(timeout=200)
    assert "rank 1 of its 2 processes was killed by SIGKILL" in said
    [attempt] = [record for record in store.records("sft") if not record.finished]
    assert (attempt.status, "SIGKILL" in attempt.reason) == ("FAILED", True)
    again = subprocess.run(command, env=known, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert store.record(attempt.id).finished
    assert f"goes on with run {attempt.id[:8]}" in again.stderr


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    [file] = [*folder.glob("checkpoints/1.0/model.safetensors"), *folder.glob("policy/model.safetensors")]
    return load_file(file)
