"""A pipeline as a job of SLURM, with two nodes on this machine: its time limit comes near, and it goes on elsewhere."""

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tasks.artifacts.store import Store
from tasks.registry import stage_named
from tasks.run_stage import StageJob
from tests.flows.conftest import TINY, environment

pytestmark = pytest.mark.services

ROOT = Path(__file__).parents[2]
JOB = ROOT / "deployments" / "slurm" / "job.sh"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
PATIENCE = 600.0
START_SECONDS = 120.0
"""A machine that does not let daemons of SLURM be, such as some containers, is known by then."""

CONFIG = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
{nodes}
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=1000 State=UNKNOWN"


class Cluster:
    """A controller and two nodes, each a daemon in the foreground, with an authentication of their own."""

    def __init__(self, folder: Path) -> None:
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.touch(mode=0o400)
        key.chmod(0o600)
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        with socket.socket() as one, socket.socket() as two, socket.socket() as three:
            for each in (one, two, three):
                each.bind(("127.0.0.1", 0))
            ports = [each.getsockname()[1] for each in (one, two, three)]
        host = socket.gethostname().partition(".")[0]
        nodes = "\n".join(NODE.format(name=f"n{number}", host=host, port=ports[number]) for number in (1, 2))
        config = CONFIG.format(user=getpass.getuser(), folder=folder, ports=ports, nodes=nodes)
        (folder / "slurm.conf").write_text(config)
        files = {"key-file": "key", "socket": "sock", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        munge = [f"--{option}={folder}/munge.{end}" for option, end in files.items()]
        self._start("munged", "--foreground", "--force", *munge)
        self._start("slurmctld", "-D")
        for number in (1, 2):
            self._start("slurmd", "-D", "-N", f"n{number}")

    def comes_up(self) -> bool:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            with suppress(subprocess.TimeoutExpired):
                if self.does("sinfo", "--noheader", "--format=%T") == "idle":
                    return True
            time.sleep(0.2)
        return False

    def _start(self, *command: str) -> None:
        quiet = subprocess.DEVNULL
        self._daemons.append(
            subprocess.Popen(command, env=self.environment, stdin=quiet, stdout=quiet, stderr=quiet, cwd="/")
        )

    def does(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What SLURM says of a job."""
        said = self.does("scontrol", "show", "job", number)
        return dict(field.partition("=")[::2] for field in said.split() if "=" in field)

    def has_ended(self, number: str) -> bool:
        return self.job(number)["JobState"] not in ("CONFIGURING", "PENDING", "RUNNING", "COMPLETING", "REQUEUED")

    def wait_for(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, self.does("squeue")
            time.sleep(0.2)

    def end(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.does("scancel", f"--user={getpass.getuser()}")
            until = time.monotonic() + 60
            while self.does("squeue", "--noheader") and time.monotonic() < until:
                time.sleep(0.2)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    missing = [program for program in PROGRAMS if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing or os.getuid() != 0:
        pytest.skip(f"SLURM's {', '.join(missing) or 'daemons need root'}: apt-get install slurmctld slurmd munge")
    # A socket's path has to be short, and munge trusts no folder that others may write to.
    folder = Path(tempfile.mkdtemp(prefix="dense-path-slurm-", dir="/var/tmp"))
    folder.chmod(0o755)
    cluster = Cluster(folder)
    try:
        if not cluster.comes_up():
            logs = [file.read_text(errors="replace")[-300:] for file in sorted(folder.glob("*.log"))]
            pytest.skip(f"SLURM's daemons do not come up on this machine: {logs}")
        yield cluster
    finally:
        cluster.end()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_job_whose_time_is_over_is_queued_again_and_goes_on_on_the_other_node(
    cluster: Cluster, tmp_path: Path
) -> None:
    home, log = tmp_path / "home", tmp_path / "job.log"
    cluster.environment |= environment(home, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    slow = ["--set", "sft.execution.checkpoint_steps=1", "--set", "sft.epochs=40"]
    command = [sys.executable, "-m", "flows.cli", "run", str(TINY), *slow, "--json"]
    options = ["--parsable", "--gpus=0", "--cpus-per-task=1", "--nodelist=n1", f"--output={log}", f"--chdir={ROOT}"]
    number = cluster.does("sbatch", *options, str(JOB), *command)

    cluster.wait_for(lambda: list(home.glob("work/*/states/*[0-9]")) or cluster.has_ended(number))
    cluster.does("scancel", "--batch", "--signal=USR1", number)
    cluster.wait_for(lambda: cluster.job(number)["JobState"] == "PENDING" or cluster.has_ended(number))
    assert cluster.job(number)["Restarts"] == "1", log.read_text()
    [attempt] = home.glob("work/*/ATTEMPT")
    interrupted = attempt.read_text()

    # By itself it would wait for two minutes.
    cluster.does("scontrol", "update", f"jobid={number}", "ReqNodeList=n2", "StartTime=now")
    cluster.wait_for(lambda: cluster.has_ended(number))
    ended = cluster.job(number)
    assert (ended["JobState"], ended["BatchHost"]) == ("COMPLETED", "n2"), log.read_text()
    said = log.read_text()
    document, _ = json.JSONDecoder().raw_decode(said[said.rindex("\n{\n") + 1 :])
    how = {stage["name"]: (stage["status"], stage["id"]) for stage in document["stages"]}
    assert how["backbone"][0] == "reused"
    assert how["sft"] == ("ran", interrupted)


def test_srun_starts_the_ranks_of_a_stage_on_two_nodes(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both nodes are this machine, of which neither name is an address: that is said."""
    home = tmp_path / "home"
    here = environment(home, MASTER_ADDR="127.0.0.1")
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "run", str(TINY), "--json"], env=here, capture_output=True, text=True
    )
    made = {stage["name"]: stage["id"] for stage in json.loads(done.stdout)["stages"]}
    monkeypatch.setenv("DPR_HOME", str(home))
    store = Store.open()
    srun = ["srun", "--nodes=2", "--ntasks=2", "--kill-on-bad-exit=1", f"--chdir={ROOT}", sys.executable, "-m"]
    for name, weights in (("sft", "checkpoints/1.0"), ("reinforce", "policy")):
        alone = store.record(made[name])
        config = stage_named(name).config.model_validate(alone.config)
        file = tmp_path / f"{name}.json"
        file.write_text(StageJob(name, name, config, alone.inputs, None, datetime.now(UTC)).to_json())
        ran = subprocess.run(
            [*srun, "tasks.launch.worker", str(file)],
            env=cluster.environment | here,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ran.returncode == 0, ran.stderr
        [together] = {record.id for record in store.records(name) if record.name == name} - {alone.id}
        ours, theirs = (
            load_file(store.fetch(run_id).path / weights / "model.safetensors") for run_id in (together, alone.id)
        )
        assert ours.keys() == theirs.keys()
        assert max(float((ours[part] - theirs[part]).abs().max()) for part in ours) < 1e-6
