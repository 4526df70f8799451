"""Ray Train: the ranks of a stage on a Ray cluster, begun again from the last state where some of them are lost.

This is the agent of `launch.engine: ray`, as `agent.py` is that of one machine: it passes on what rank 0 tells, and
writes down how ranks failed. Ray ends its driver where the cluster goes away, and so this is no part of the flow's own
process. What Ray's workers do is in `ray_worker.py`.
"""

import json
import os
import signal
import socket
import sys
import time
import traceback
from concurrent.futures import Future, ThreadPoolExecutor, wait
from logging import WARNING
from pathlib import Path
from typing import Any, TextIO

from dpr_core.config.execution import LaunchConfig
from dpr_core.errors import DensePathError, UsageError
from dpr_core.redaction import KEY_VARIABLE, address
from tasks.artifacts.identity import library_versions
from tasks.launch.agent import FAILURES, failure
from tasks.launch.child_processes import die_with
from tasks.run_stage import StageJob
from tasks.running.ray_cluster import check_cluster

CONNECT_SECONDS = 60.0
"""Within this a cluster answers, or is not there."""

POLL_SECONDS = 0.5

SAY_SECONDS = 60.0
"""After so long without a rank that runs it is said that they are waited for."""

GROWTH_SECONDS = 600.0
"""So often more workers are taken where nodes have come. Each time the stage goes on from its last state."""

PASSED_ON = ("MLFLOW_", "DPR_", "HF_")
"""How the variables begin that a node gets from here where it has none of its own. No keys are among them."""

Failures = dict[str, dict[str, Any]]
"""How ranks ended, as torch's agent says it."""


def main() -> None:
    parent, folder, file = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[4])
    die_with(parent)
    job = StageJob.of_json(file.read_text(encoding="utf-8"))
    try:
        with (folder / "told").open("a", encoding="utf-8", buffering=1) as told:
            failures = drive(job, told, folder)
    except DensePathError as error:
        kind = UsageError if isinstance(error, UsageError) else DensePathError
        failures = {"0": failure(kind.__name__, str(error))}
    for rank, each in failures.items():
        log = folder / "logs" / "ray" / "attempt_0" / rank / "stderr.log"  # where torch's agent has it
        log.parent.mkdir(parents=True)
        log.write_text(each.pop("words", ""), encoding="utf-8")
    if failures:
        (folder / FAILURES).write_text(json.dumps(failures), encoding="utf-8")
    # Not what Ray does at exit: it waits for a cluster that is gone.
    os._exit(bool(failures))


def drive(job: StageJob, told: TextIO, folder: Path) -> Failures:
    """Have Ray do a stage, and pass on what its rank 0 tells."""
    launch: LaunchConfig = job.config.execution.launch  # type: ignore[attr-defined]
    threads = ThreadPoolExecutor()
    connect(job.name, threads)
    import ray

    from tasks.launch.ray_worker import Board

    waiting, began = Waiting(job.name, launch, told), time.monotonic()
    while (found := room())[0] < launch.fewest:
        waiting.has_lasted(time.monotonic() - began)
        time.sleep(POLL_SECONDS)
    here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
    board = ray.remote(num_cpus=0, label_selector=here)(Board).remote()
    signal.signal(signal.SIGTERM, lambda number, frame: board.set.remote("stop"))
    told.write(json.dumps({"pid": os.getpid()}) + "\n")
    training: Future[Failures] = threads.submit(_fit, job, launch.on(found[0]), found[1], board, folder / "ray")
    while True:
        is_over = bool(wait([training], POLL_SECONDS).done)
        try:
            lines, silence = ray.get(board.heard.remote(), timeout=CONNECT_SECONDS)
        except ray.exceptions.RayError as error:
            raise DensePathError(f"{job.name}: the Ray cluster is gone ({_first_line(error)})") from error
        told.writelines(f"{line}\n" for line in lines)
        if is_over:
            return training.result()
        waiting.has_lasted(silence)


def connect(name: str, threads: ThreadPoolExecutor) -> None:
    """Join the cluster as a driver."""
    check_cluster(name)
    import ray

    where = os.environ["RAY_ADDRESS"]

    def join() -> None:
        host, _, port = where.rpartition(":")
        if host:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
        ray.init(logging_level=WARNING, log_to_driver=False)

    try:
        threads.submit(join).result(CONNECT_SECONDS)
    except Exception as error:
        problem = _first_line(error)
        if isinstance(error, TimeoutError):
            problem = f"no answer within {CONNECT_SECONDS:g} seconds"
        raise DensePathError(
            f"{name}: this machine cannot take part in the Ray cluster at RAY_ADDRESS={where} ({problem}); start it "
            "there, with `ray start`, and then the same command again"
        ) from error


def room() -> tuple[int, str]:
    """How many ranks the cluster has a GPU each for, or a core where it has no GPU; and which."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    device = "GPU" if any(node.get("GPU") for node in nodes) else "CPU"
    return int(sum(node.get(device, 0) for node in nodes)), device


class Waiting:
    """For ranks to run, at first or after some were lost: Ray itself would wait for ever."""

    def __init__(self, name: str, launch: LaunchConfig, told: TextIO) -> None:
        self._name, self._launch, self._told = name, launch, told
        self._is_said = False

    def has_lasted(self, seconds: float) -> None:
        """Fail once it has been too long."""
        is_too_long = seconds > 60 * self._launch.timeout_minutes
        if is_too_long or (seconds > SAY_SECONDS and not self._is_said):
            words = "{}: no rank has run for {:.0f} s; the Ray cluster has {} {}s, and launch.fewest is {}".format(
                self._name, seconds, *room(), self._launch.fewest
            )
            if is_too_long:
                raise DensePathError(f"{words}. Once there are as many, free, the same command goes on")
            self._told.write(json.dumps({"log": ["dense_path", WARNING, f"{words}: waiting"]}) + "\n")
        self._is_said = seconds > SAY_SECONDS


def passed_on() -> dict[str, str]:
    """Settings of this process for nodes that have none of their own; keys, and addresses with keys, stay here."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(PASSED_ON)
        and name not in ("DPR_HOME", "DPR_TOLD")
        and not KEY_VARIABLE.search(name)
        and address(value) == value
    }


def _fit(job: StageJob, launch: LaunchConfig, device: str, board: Any, folder: Path) -> Failures:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.config import LoggingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    from ray.train.v2.api.exceptions import WorkerGroupError

    from tasks.launch.ray_worker import RankError, SharedDevices, train

    settings = {"job": job.to_json(), "versions": library_versions(), "environment": passed_on(), "board": board}
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # DPR_HOME may be relative
    trainer = DataParallelTrainer(
        train,
        train_loop_config=settings,
        backend_config=SharedDevices(),
        scaling_config=ScalingConfig(
            num_workers=(launch.fewest, max(launch.fewest, launch.count)),
            resources_per_worker={device: 1},
            use_gpu=device == "GPU",
            elastic_resize_monitor_interval_s=GROWTH_SECONDS,
        ),
        run_config=RunConfig(
            storage_path=str(folder),  # for its own notes: states are ours
            failure_config=FailureConfig(max_failures=launch.retries),
            logging_config=LoggingConfig("WARNING"),
        ),
    )
    try:
        ended = trainer.fit().return_value
        return {"0": ended} if ended else {}
    except WorkerGroupError as error:
        causes = {rank: getattr(each, "_base_exc", each) for rank, each in error.worker_failures.items()}
        return {
            str(rank): each.failure
            if isinstance(each, RankError)
            else failure(type(each).__name__, _first_line(each), -signal.SIGKILL)  # its worker is lost
            for rank, each in causes.items()
        }
    except Exception as error:
        cause = getattr(error, "controller_failure", error)
        return {"0": failure(DensePathError.__name__, f"{job.name}: Ray cannot do it: {_first_line(cause)}")}


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


if __name__ == "__main__":
    from tasks.launch.ray_train import main  # so that what Ray pickles is not of __main__

    try:
        main()
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # threads that wait for the cluster would be waited for
