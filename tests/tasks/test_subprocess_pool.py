"""Stages made by other processes: what comes back, and what becomes of a process that ends."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from dpr_core.config.base import StageConfig
from dpr_core.config.data import LabSourceConfig, SubsampleConfig, TemplateConfig
from dpr_core.config.model import LabBackboneConfig
from dpr_core.config.training import SFTConfig
from dpr_core.errors import DensePathError, UsageError
from tasks.artifacts.store import Store
from tasks.launch.child_processes import environment
from tasks.run_stage import Outcome, StageJob
from tasks.running.observer import OBSERVER, Observer
from tasks.subprocess_pool import SubprocessPool, _Watched, _Worker

pytestmark = pytest.mark.integration

DATA = SubsampleConfig(source=LabSourceConfig(rows=8), size=8, template=TemplateConfig(text="{prompt}\n"))
ENDLESS = LabBackboneConfig(teach_max_steps=10**6, probe_every=10**6)


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The real stages, which the other processes know."""
    monkeypatch.undo()
    monkeypatch.setenv("DPR_HOME", str(home))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Store.open()


def job(config: SubsampleConfig | LabBackboneConfig, inputs: dict[str, str] | None = None) -> StageJob:
    stage = "subsample" if isinstance(config, SubsampleConfig) else "backbone"
    return StageJob(stage, f"my {stage}", config, inputs or {}, None)


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "subprocess_pool.main" in " ".join(child.cmdline())]


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_process_makes_one_stage_after_another_and_tells_errors_as_they_are(here: Store) -> None:
    with SubprocessPool() as pool:
        made = pool.run(job(DATA))
        assert (made.status, made.name) == ("ran", "my subsample")
        assert here.verify(made.id) == []
        assert pool.run(job(DATA)).status == "reused"
        with pytest.raises(UsageError, match="subsample has no input called sft"):
            pool.run(job(DATA, {"sft": made.id}))
        assert len(children()) == 1
    assert children() == []
    with pytest.raises(DensePathError, match="the run is ending"):
        pool.run(job(DATA))


@pytest.mark.slow
def test_a_process_that_is_killed_fails_its_stage_alone(here: Store) -> None:
    failures: list[str] = []

    def try_to_make(pool: SubprocessPool) -> None:
        try:
            pool.run(job(ENDLESS))
        except DensePathError as error:
            failures.append(str(error))

    def begun() -> list[int]:
        """When the attempt at the backbone was begun or taken up."""
        return [path.stat().st_mtime_ns for path in (here.home / "work").glob("*/ATTEMPT")]

    with SubprocessPool() as pool:
        thread = threading.Thread(target=try_to_make, args=[pool])
        thread.start()
        wait_until(begun)
        before = begun()
        [child] = children()
        os.kill(child.pid, signal.SIGKILL)
        thread.join()
        assert failures == ["my backbone: the process that made it was killed by SIGKILL"]
        assert pool.run(job(DATA)).status == "ran"
        thread = threading.Thread(target=try_to_make, args=[pool])
        thread.start()
        wait_until(lambda: begun() not in ([], before))
    thread.join()
    assert children() == []
    assert [record.status for record in here.records("backbone")] == ["KILLED"]


def test_processes_that_share_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DPR_CORES", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(7)))
    monkeypatch.setattr("dpr_core.cores.MEMBERSHIP", Path("nowhere"))
    monkeypatch.setattr("dpr_core.cores.CGROUPS", Path("nowhere"))
    assert [environment(jobs).get("DPR_CORES") for jobs in (1, 2, 3, 20)] == [None, "3", "2", "1"]
    given: list[int] = []
    monkeypatch.setattr("tasks.subprocess_pool.environment", lambda sharing: given.append(sharing) or dict(os.environ))
    with SubprocessPool(2) as pool:
        pool._idle += [_Worker(pool._jobs)]
    assert given == [2]


def test_processes_divide_the_gpus_and_wait_for_those_that_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[list[str]] = []
    ended: list[list[str]] = []
    together = threading.Barrier(2)

    class Process:
        def __init__(self, sharing: int, gpus: list[str]) -> None:
            self.gpus = gpus
            begun.append(gpus)

        def run(self, job: StageJob) -> str:
            if job.name == "one":
                together.wait(30)
            return f"{job.name} on {','.join(self.gpus)}"

        def stop(self) -> None:
            ended.append(self.gpus)

        def wait(self) -> int:
            return 0

    def sft(name: str, processes: int = 1) -> StageJob:
        launch = {"processes": processes}
        return StageJob("sft", name, SFTConfig.model_validate({"execution": {"launch": launch}}), {}, None)

    monkeypatch.setattr("tasks.subprocess_pool._Worker", Process)
    with SubprocessPool(3, ["4", "5"]) as pool, ThreadPoolExecutor(2) as threads:
        # Neither begins before the other, so that they cannot have had the same.
        done = list(threads.map(pool.run, [sft("one"), sft("one")]))
        assert sorted(map(str, done)) == ["one on 4", "one on 5"]
        assert str(pool.run(sft("both", 2))) in ("both on 4,5", "both on 5,4")
        assert sorted(ended) == [["4"], ["5"]], "an idle process would hold memory of its GPU"
        assert str(pool.run(sft("more than there are", 8))).count(",") == 1
        assert str(pool.run(job(DATA))) == "my subsample on "
    assert [len(each) for each in begun] == [1, 1, 2, 0]


def test_a_stage_of_several_gpus_is_not_overtaken(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    go_on = threading.Event()

    class Process:
        def __init__(self, sharing: int, gpus: list[str]) -> None:
            self.gpus = gpus

        def run(self, job: StageJob) -> None:
            begun.append(job.name)
            if job.name == "first":
                go_on.wait(30)

        def stop(self) -> None: ...

        def wait(self) -> int:
            return 0

    def sft(name: str, processes: int = 1) -> StageJob:
        launch = {"processes": processes}
        return StageJob("sft", name, SFTConfig.model_validate({"execution": {"launch": launch}}), {}, None)

    monkeypatch.setattr("tasks.subprocess_pool._Worker", Process)
    with SubprocessPool(3, ["4", "5"]) as pool, ThreadPoolExecutor(3) as threads:
        for number, each in enumerate((sft("first"), sft("both", 2), sft("last"))):
            threads.submit(pool.run, each)
            # One after another, and "last" comes to one GPU that is free.
            while len(begun) + len(pool._queue) <= number:
                time.sleep(0.001)
        assert (begun, [job.name for job in pool._queue]) == (["first"], ["both", "last"])
        go_on.set()
    assert begun == ["first", "both", "last"]


class Watching(Observer):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    @contextmanager
    def turn(self, stage: str, config: StageConfig, wanted: Callable[[], bool] = lambda: True) -> Iterator[None]:
        self.seen.append(stage)
        assert wanted()
        yield
        self.seen.append("over")

    def progress(self, step: int, total: int | None, note: str) -> None:
        self.seen.append((step, total, note))


def test_who_asked_for_a_stage_sees_how_far_another_process_is_with_it() -> None:
    """Both ends of the connection in one process."""
    ours, theirs = Pipe()
    worker, made = _Worker.__new__(_Worker), Outcome("judge", "judge", "id", "ran", 0.0, {})
    worker._connection = ours
    worker._process = SimpleNamespace(poll=lambda: None)  # type: ignore[assignment]

    def other() -> None:
        theirs.recv()
        watched = _Watched(theirs)
        with watched.turn("judge", DATA):
            watched.progress(1, 2, "half")
        theirs.send(made)

    threading.Thread(target=other, daemon=True).start()
    watching = Watching()
    before = OBSERVER.set(watching)
    try:
        assert worker.run(job(DATA)) == made
    finally:
        OBSERVER.reset(before)
    assert watching.seen == ["judge", (1, 2, "half"), "over"]


def test_a_stage_that_nobody_waits_for_any_more_ends_once_as_by_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = Pipe()
    ours.close()
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda process, number: sent.append((process, number)))
    watched = _Watched(theirs)
    watched.progress(1, 2, "")
    watched.progress(2, 2, "")
    assert sent == [(os.getpid(), signal.SIGTERM)]
