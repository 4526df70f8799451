"""SPMD entry of one rank, under any launcher's environment: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.

    python -m tasks.launch.worker JOB.json
    python -m tasks.launch.worker rerun ID [FIELD=VALUE ...]

Rank 0 does what one process does, with the lock, the MLflow run and the publishing; the others follow it.
"""

import json
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, MutableMapping
from contextlib import nullcontext
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dpr_core.config.base import StageConfig
from dpr_core.config.execution import ExecutionConfig, LaunchConfig
from dpr_core.cores import usable_cores
from dpr_core.errors import DensePathError, UsageError
from dpr_core.redaction import redact, redact_logs
from tasks.artifacts.store import Artifact
from tasks.launch.child_processes import die_with
from tasks.local_home import DiskFullError, is_full
from tasks.registry import stage_named
from tasks.run_stage import Body, Outcome, StageJob, in_this_process
from tasks.running.stage import Stage
from tasks.running.together import OtherFailedError
from tasks.running.workspace import Progress, Workspace

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ErrorHandler

SHUTDOWNS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

TOLD = "DPR_TOLD"
"""The environment variable with the file into which rank 0 writes what it would show, a line of JSON each."""

FIRST_HOST = re.compile(r"([^,\[]+)(?:\[(\d+))?")
"""Of SLURM's list, such as `gpu[03-04,07],login`."""


def run(job: StageJob, progress: Progress | None = None) -> Outcome:
    """This rank's share of a stage. In ranks other than 0 it raises `Stopped` where rank 0 has ended the stage."""
    import torch

    from dpr_core import distributed

    launch = _launch(job)
    ours = not torch.distributed.is_initialized()
    together = distributed.state(timedelta(minutes=launch.timeout_minutes))
    if distributed.world_size() > 1 and not stage_named(job.stage).shared:
        raise UsageError(f"{job.stage} is done by one process: start it by dpr, or as one rank")
    if distributed.world_size() == 1:
        outcome = _owned(job, progress, in_this_process)
    elif distributed.rank() == 0:
        outcome = _lead(job, progress)
    else:
        outcome = _follow(job)
    if ours and torch.distributed.is_initialized():
        together.destroy_process_group()
    return outcome


def _launch(job: StageJob) -> LaunchConfig:
    execution = getattr(job.config, "execution", None)
    return execution.launch if isinstance(execution, ExecutionConfig) else LaunchConfig()


def _owned(job: StageJob, progress: Progress | None, body: Body) -> Outcome:
    """The stage, by the rank that owns it."""
    from tasks.running.progress import StageProgress

    with nullcontext(progress) if progress is not None else StageProgress(job.name) as shown:
        return job.run(shown, body=body)


def _lead(job: StageJob, progress: Progress | None) -> Outcome:
    from tasks.launch.shared_work import Lead, Stopped

    lead = Lead(_launch(job))

    def body(stage: Stage, config: StageConfig, artifacts: Mapping[str, Artifact], work: Workspace) -> dict[str, float]:
        if isinstance(progress, Told):
            progress.tell(run=work.run.id)
        return lead.body(stage, config, artifacts, work)

    try:
        outcome = _owned(job, progress, body)
    except BaseException:
        lead.tell(Stopped())
        raise
    lead.tell(outcome)
    return outcome


def _follow(job: StageJob) -> Outcome:
    from tasks.launch.shared_work import SharedWork, Stopped, Task, run_body, told, waiting

    if threading.current_thread() is threading.main_thread():
        for number in SHUTDOWNS:
            signal.signal(number, signal.SIG_IGN)  # for rank 0 to decide on
    began = time.monotonic()
    with waiting(job.name, _launch(job)):
        word = told()
        if isinstance(word, Stopped):
            raise word
        if not isinstance(word, Task):
            return word
        metrics = run_body(word, SharedWork(word))
    return Outcome(job.stage, job.name, word.run, "ran", time.monotonic() - began, metrics)


class Told:
    """A progress display and a log that are elsewhere: with the process that started the ranks, and tails this file."""

    def __init__(self, file: Path) -> None:
        self._file = file.open("a", encoding="utf-8", buffering=1)
        self._one_at_a_time = threading.Lock()

    def tell(self, **message: Any) -> None:
        with self._one_at_a_time:
            self._file.write(json.dumps(message) + "\n")

    def advance(self, step: int, total: int | None, note: str = "", at_most: bool = False) -> None:
        self.tell(advance=[step, total, note, at_most])

    def part(self, what: str, done: int, total: int) -> None:
        self.tell(part=[what, done, total])


class _Log(logging.Handler):
    """What is logged here is logged there."""

    def __init__(self, told: Told) -> None:
        super().__init__()
        self._told = told

    def emit(self, record: logging.LogRecord) -> None:
        self._told.tell(log=[record.name, record.levelno, record.getMessage()])


def main() -> None:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with(os.getppid())  # the agent's: nobody else would end this one
    recorder = _recorder()
    redact_logs()
    told = None
    try:
        _environment_of_slurm(os.environ)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // int(os.environ["LOCAL_WORLD_SIZE"]))))
        is_first = os.environ["RANK"] == "0"
        if is_first and (file := os.environ.get(TOLD)):
            told = Told(Path(file))
            told.tell(pid=os.getpid())
        handlers = [_Log(told)] if told else None
        level = logging.WARNING if is_first else logging.ERROR  # all of them warn of the same
        logging.basicConfig(level=level, format="%(message)s", handlers=handlers, force=True)
        logging.getLogger("dense_path").setLevel(logging.INFO if is_first else logging.ERROR)
        outcome = run(_job(sys.argv[1:]), told)
    except Exception as error:
        if isinstance(error, OtherFailedError) and os.environ["RANK"] != "0":
            print(f"error: {error}", file=sys.stderr)
            _end(0)  # as its own failure, an agent would end rank 0 for it, which ends its run
        recorder.record_exception(error)
        words = f"error: {error}" if isinstance(error, DensePathError) else redact(traceback.format_exc())
        print(words, file=sys.stderr)
        _end(error.exit_status if isinstance(error, DensePathError) else 1)
    except KeyboardInterrupt as end:
        from tasks.launch.shared_work import Stopped

        # Of its failure rank 0 tells, as above.
        _end(0 if isinstance(end, Stopped) else 130)
    else:
        if told:
            told.tell(outcome=asdict(outcome))
        elif is_first:
            print(f"{outcome.name}: {outcome.id} {outcome.status} in {outcome.seconds:.0f} s")


def _end(status: int) -> NoReturn:
    """Without what libraries do at exit: a process group whose others are gone can wait there for them."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _job(arguments: list[str]) -> StageJob:
    match arguments:
        case ["rerun", artifact, *overrides]:
            from tasks.artifacts.store import Store
            from tasks.graph import rerun_nodes

            store = Store.open(retry=True)
            [node] = rerun_nodes(store, store.resolve(artifact), overrides, downstream=False)
            return StageJob(node.stage, node.name, node.config, node.inputs, None, None, node.origin)
        case [file]:
            return StageJob.of_json(Path(file).read_text(encoding="utf-8"))
    raise UsageError(f"give a file with a stage's job, or: rerun ID [FIELD=VALUE ...]; not {' '.join(arguments)!r}")


def _environment_of_slurm(variables: MutableMapping[str, str]) -> None:
    """What srun says of this rank, in torch's words, where no launcher of torch's has said it."""
    if "RANK" not in variables and "SLURM_PROCID" in variables:
        hosts = FIRST_HOST.match(variables.get("SLURM_STEP_NODELIST", variables.get("SLURM_JOB_NODELIST", "")))
        variables["RANK"] = variables["SLURM_PROCID"]
        variables["WORLD_SIZE"] = variables["SLURM_NTASKS"]
        variables["LOCAL_RANK"] = variables["SLURM_LOCALID"]
        if hosts is not None:
            variables.setdefault("MASTER_ADDR", f"{hosts[1]}{hosts[2] or ''}")
        number = int(variables.get("SLURM_JOB_ID", 0)) + int(variables.get("SLURM_STEP_ID", 0))
        variables.setdefault("MASTER_PORT", str(20_000 + number % 10_000))
    if missing := [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in variables]:
        raise UsageError(
            f"{missing[0]} is not set: a launcher, such as torchrun, accelerate launch or srun, has to start this"
        )
    variables.setdefault("LOCAL_RANK", "0")
    variables.setdefault("LOCAL_WORLD_SIZE", "1")


def _recorder() -> "ErrorHandler":
    """Writes the error file of torch's agents, with the kind of an error in it, and no keys."""
    from torch.distributed.elastic.multiprocessing.errors import ErrorHandler

    class Recorder(ErrorHandler):
        def record_exception(self, e: BaseException) -> None:
            now = time.time()
            extra = {"py_callstack": redact(traceback.format_exc()), "timestamp": str(int(now))}
            message = {"message": redact(f"{type(e).__name__}: {e}"), "extraInfo": extra}
            if file := self._get_error_file_path():
                own = {"kind": kind_of(e), "text": redact(str(e)), "time": now}
                self._write_error_file(file, json.dumps({"message": message} | own))

    recorder = Recorder()
    recorder.initialize()
    return recorder


def kind_of(error: BaseException) -> str:
    """The nearest of those that are raised again as they are, or its own name."""
    if is_full(error):
        return DiskFullError.__name__
    known = [kind.__name__ for kind in type(error).__mro__ if kind in (UsageError, DensePathError)]
    return known[0] if known else type(error).__name__


if __name__ == "__main__":
    main()
