"""Idempotent run of one stage: verify the inputs, reuse what has the same key, else work and publish atomically."""

import functools
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from dpr_core.config.base import StageConfig
from dpr_core.config.execution import LaunchConfig
from dpr_core.errors import DensePathError, UsageError
from tasks.artifacts.identity import InputEntry, Manifest, files_below, stage_key
from tasks.artifacts.leases import Holder
from tasks.artifacts.listed import only_for_people
from tasks.artifacts.retrying import LeaseLostError
from tasks.artifacts.run_records import is_recent
from tasks.artifacts.store import Artifact, Record, StageRun, Store
from tasks.artifacts.system_metrics import watched
from tasks.artifacts.turns import Turn
from tasks.local_home import disk_full_error, is_full, syncing
from tasks.locks import exclusive
from tasks.registry import stage_named
from tasks.running.explain_rerun import FORCED, UNEXPLAINED, RequestedStage, differences
from tasks.running.observer import OBSERVER
from tasks.running.ray_cluster import check_cluster
from tasks.running.shutdown import Shutdown, TimedOut, graceful_shutdown
from tasks.running.stage import Stage, torch_settings
from tasks.running.stage_workdir import StageWorkdir
from tasks.running.workspace import Progress, Workspace
from tasks.stages.datasets_and_models import TRAINING, datasets_read, model_measured, models_made

logger = logging.getLogger("dense_path")

RESUMED = "it was interrupted, and went on from there"
SAY_SECONDS = 300.0


@dataclass(frozen=True)
class Outcome:
    """The artifact of a stage, and whether it had to run."""

    stage: str
    name: str
    id: str
    status: Literal["ran", "reused"]
    seconds: float
    metrics: dict[str, float]
    why: str = ""
    """It was reused, or had to run."""


Body = Callable[[Stage, StageConfig, Mapping[str, Artifact], Workspace], dict[str, float]]
"""What runs a stage's body; returns the final metrics."""


def in_this_process(
    stage: Stage, config: StageConfig, artifacts: Mapping[str, Artifact], work: Workspace
) -> dict[str, float]:
    """The stage's body alone."""
    with torch_settings(config):
        return stage.body(config, work)


@dataclass(frozen=True)
class StageJob:
    """A stage to run, in this process or another."""

    stage: str
    name: str
    config: StageConfig
    inputs: Mapping[str, str]
    parent: str | None
    not_before: datetime | None = None
    """What was begun before this moment is not reused."""
    origin: str | None = None
    """The artifact that is made again, with which the reasons compare."""

    def to_json(self) -> str:
        not_before = self.not_before and self.not_before.isoformat()
        config = self.config.model_dump(mode="json")
        return json.dumps({**vars(self), "inputs": dict(self.inputs), "config": config, "not_before": not_before})

    @classmethod
    def of_json(cls, text: str) -> "StageJob":
        job = json.loads(text)
        not_before = job["not_before"] and datetime.fromisoformat(job["not_before"])
        return cls(
            **job | {"config": stage_named(job["stage"]).config.model_validate(job["config"]), "not_before": not_before}
        )

    def run(
        self, progress: Progress, *, body: Body = in_this_process, in_ranks: "StartsRanks | None" = None
    ) -> Outcome:
        """Run the stage, or reuse its artifact."""
        return run_stage(
            stage_named(self.stage),
            self.config,
            self.inputs,
            store=Store.open(retry=True),
            parent=self.parent,
            name=self.name,
            not_before=self.not_before,
            origin=self.origin,
            progress=progress,
            body=body,
            in_ranks=in_ranks,
        )


class StartsRanks(Protocol):
    def __call__(
        self, job: StageJob, launch: LaunchConfig, store: Store, progress: Progress | None, shutdown: Shutdown
    ) -> Outcome:
        """Have the stage done by several processes, of which one takes its key."""


def run_stage(
    stage: Stage,
    config: StageConfig,
    inputs: Mapping[str, str],
    *,
    store: Store,
    parent: str | None = None,
    name: str | None = None,
    not_before: datetime | None = None,
    origin: str | None = None,
    progress: Progress | None = None,
    body: Body = in_this_process,
    in_ranks: StartsRanks | None = None,
) -> Outcome:
    """Reuse a finished artifact of the same key, or make one. Exactly one process at a time works on a key.

    What was begun before `not_before` is neither reused nor resumed. With `in_ranks`, processes of which the launch
    settings want several are started by this one, which then does not work itself.
    """
    name = name or stage.name
    config = stage.pin(config)
    started = time.monotonic()
    artifacts = _verified_inputs(stage, inputs, store)
    config = stage.settle(config, {role: artifact.config for role, artifact in artifacts.items()})
    digests = {role: artifact.digest for role, artifact in artifacts.items()}
    key = stage_key(stage.name, stage.version_of(config), config.identity(), digests)

    workdir = StageWorkdir(store.home / "work" / key)
    why, damage, run = RESUMED, list[str](), None

    def on_wait() -> None:
        logger.info("%s: another process is making this; waiting for it", name)

    def begin() -> StageRun:
        nonlocal why
        requested = RequestedStage(name, stage.name, stage.version_of(config), config, digests, frozenset(digests))
        reasons = damage or ([FORCED] if not_before else _changes(requested, store, parent, origin))
        why = "; ".join(reasons) or UNEXPLAINED
        logger.info("%s: runs, because: %s", name, why)
        return store.begin(
            stage=stage.name,
            name=name,
            version=stage.version_of(config),
            key=key,
            config=config,
            inputs={role: artifact.id for role, artifact in artifacts.items()},
            parent=parent,
            description=f"{stage.describe(config)}\n\nRan because: {why}.",
            not_before=not_before,
        )

    with graceful_shutdown() as shutdown, ExitStack() as held, ExitStack() as lock:
        lock.enter_context(exclusive(store.home / "locks" / f"{key}.lock", on_wait))
        prepare = functools.cache(lambda: held.enter_context(OBSERVER.get().turn(stage.name, config)))
        while run is None:
            finished = store.finished(key)
            candidates = recent(finished, not_before)
            found, damage = reusable(candidates, lambda run_id: store.verify(run_id, quick=True))
            for line in damage:
                logger.warning("%s: not reused: %s", name, line)
            if found is not None:
                if workdir.attempt == found.id:
                    workdir.clear(finished=found.id)
                took = time.monotonic() - started
                return Outcome(stage.name, name, found.id, "reused", took, found.results, unchanged_since(found))
            check_launch(stage, config)
            workdir.check()
            known = {record.id for record in finished}
            turn = Turn(key, config, workdir.runs_left, known, not_before, parent, prepare, begin, Waiting(name))
            if in_ranks is None or not (launch := stage.launch(config)):
                run = store.turns.hold(turn)
            elif store.turns.wait(turn):  # here, and not in ranks, which have a GPU each
                prepare()
                lock.close()
                job = StageJob(stage.name, name, config, inputs, parent, not_before, origin)
                return in_ranks(job, launch, store, progress, shutdown)
        if why == RESUMED:
            logger.info("%s: goes on with run %s, which was interrupted", name, run.id[:8])
        held.enter_context(run.held())
        work = Workspace(
            run,
            store,
            {role: artifact.id for role, artifact in artifacts.items()},
            workdir,
            execution=getattr(config, "execution", None),
            shutdown=shutdown,
            progress=progress,
        )
        metrics = _run_and_publish(stage, name, config, artifacts, work, shutdown, body)
    return Outcome(stage.name, name, run.id, "ran", time.monotonic() - started, metrics, why)


def unchanged_since(record: Record) -> str:
    """Why an artifact is reused."""
    return f"nothing changed since {record.started:%Y-%m-%d %H:%M} UTC"


def check_launch(stage: Stage, config: StageConfig) -> None:
    """Refuse more processes than the stage can be done by, or than there are GPUs for."""
    if launch := stage.launch(config):
        if not stage.shared:
            raise UsageError(
                f"{stage.name} is done by one process, not {launch.processes}: leave its execution.launch as it is"
            )
        if launch.is_elsewhere:
            check_cluster(stage.name)
            return
        import torch

        gpus = torch.cuda.device_count()
        if 0 < gpus < launch.count:
            raise UsageError(
                f"{stage.name}: execution.launch.processes is {launch.processes}, but there is one process for each "
                f"GPU and this machine has {gpus}; set it to {gpus}"
            )


def recent(records: Iterable[Record], not_before: datetime | None) -> list[Record]:
    """Those that were not begun before a moment; without one, all."""
    return [record for record in records if is_recent(record, not_before)]


class Waiting:
    """Says who is waited for, and every few minutes that it still is."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._since = time.monotonic()
        self._said: float | None = None

    def __call__(self, holder: Holder) -> None:
        now = time.monotonic()
        if self._said is None:
            logger.info("%s: another host is making this (%s); waiting for it", self._name, holder.where)
        elif now - self._said < SAY_SECONDS:
            return
        else:
            minutes = (now - self._since) / 60
            logger.info("%s: %s is still at it; waited for %.0f minutes", self._name, holder.where, minutes)
        self._said = now


def reusable(finished: Iterable[Record], problems_of: Callable[[str], list[str]]) -> tuple[Record | None, list[str]]:
    """The first of the finished artifacts of a key that is sound, and what is wrong with those before it."""
    damage: list[str] = []
    for record in finished:
        problems = problems_of(record.id)
        if not problems:
            return record, damage
        damage.append(f"artifact {record.title} is damaged ({'; '.join(problems[:3])})")
    return None, damage


def _changes(requested: RequestedStage, store: Store, parent: str | None, origin: str | None) -> list[str]:
    same = store.made_before(requested.stage, requested.name, parent) + ([store.record(origin)] if origin else [])
    sources = {source for record in same for source in record.inputs.values()}
    return differences(requested, same, store.digests(sources), origin)


def _verified_inputs(stage: Stage, inputs: Mapping[str, str], store: Store) -> dict[str, Artifact]:
    stage.check_roles(inputs)
    artifacts = {}
    for role, reference in sorted(inputs.items()):
        try:
            artifacts[role] = store.fetch(reference, stages=stage.accepted(role))
        except DensePathError as error:
            raise type(error)(f"input {role} of {stage.name}: {error}") from error
    return artifacts


def _run_and_publish(
    stage: Stage,
    name: str,
    config: StageConfig,
    artifacts: Mapping[str, Artifact],
    work: Workspace,
    shutdown: Shutdown,
    body: Body,
) -> dict[str, float]:
    """Either all of it becomes an artifact, or the run ends as FAILED or KILLED and what can be resumed is kept."""
    run, workdir = work.run, work.workdir
    try:
        workdir.open(run.id, run.turn)
        run.keep_unsent_in(workdir.unsent)
        with only_for_people("datasets"):
            run.reads(datasets_read(config, artifacts, work.store))
        with _time_limit(stage, config, shutdown, workdir):
            manifest, metrics = _finished_before(run, workdir) or _run_body(stage, config, artifacts, work, body)
        run.results(metrics)
        models, measured = [], None
        with only_for_people("models"):
            models = models_made(stage.name, name, (each["path"] for each in manifest.files), metrics, run.last_step)
            measured = model_measured(config, artifacts, work.store)
        run.publish(work.output, manifest, models, measured)
    except LeaseLostError:
        raise
    except BaseException as error:
        if body is not in_this_process:
            # The other ranks fail as well, and their agent then terminates this one.
            try:
                shutdown.block_signals()
            except KeyboardInterrupt:  # it did so just now
                shutdown.block_signals()
        kept = workdir.is_resumable
        if kept:
            logger.warning("%s: interrupted; what is done is kept, and the same command goes on from there", stage.name)
        else:
            workdir.clear()
        if isinstance(error, DensePathError):
            error.run = run.id
        _end(run, "FAILED" if isinstance(error, Exception) else "KILLED", f"{type(error).__name__}: {error}", kept)
        if is_full(error) and not isinstance(error, DensePathError):
            raise disk_full_error(work.store.home) from error
        raise
    workdir.clear()
    return metrics


@contextmanager
def _time_limit(stage: Stage, config: StageConfig, shutdown: Shutdown, workdir: StageWorkdir) -> Iterator[None]:
    """`execution.timeout_minutes`, where it is set."""
    minutes: float | None = getattr(getattr(config, "execution", None), "timeout_minutes", None)
    try:
        with shutdown.time_limit(None if minutes is None else 60 * minutes):
            yield
    except TimedOut:
        kept = "What is done is kept, and the same command goes on from there"
        again = kept if workdir.is_resumable else "The same command begins it again"
        raise DensePathError(
            f"{stage.name}: its execution.timeout_minutes={minutes:g} are over. {again}; with another value it has "
            "that long"
        ) from None


def _run_body(
    stage: Stage, config: StageConfig, artifacts: Mapping[str, Artifact], work: Workspace, body: Body
) -> tuple[Manifest, dict[str, float]]:
    """Run the body; returns the manifest and the final metrics."""
    entries: dict[str, InputEntry] = {role: {"id": a.id, "digest": a.digest} for role, a in artifacts.items()}
    with watched(work.run.system_metrics) if stage.name in TRAINING else nullcontext():
        metrics = body(stage, config, artifacts, work)
    # Hashed while the disk takes them: a large checkpoint keeps both the processor and the disk busy.
    with syncing([path for path, _ in files_below(work.output)]):
        manifest = Manifest.of_directory(
            work.output,
            stage=stage.name,
            stage_version=stage.version_of(config),
            config=config.identity(),
            seed=config.seed,
            inputs=entries,
        )
    if not manifest.files:
        raise DensePathError(f"{stage.name} wrote nothing into its output, so there is nothing to publish")
    work.run.flush()
    work.workdir.mark_done(manifest, metrics, work.run.last_step)
    return manifest, metrics


def _finished_before(run: StageRun, workdir: StageWorkdir) -> tuple[Manifest, dict[str, float]] | None:
    """The result of a run that was interrupted while it was published; None where the body has to run."""
    done = workdir.done()
    if done is None:
        return None
    manifest, metrics, run.last_step = done
    problems = run.unpublished(workdir.output, manifest)
    if not problems:
        return manifest, metrics
    logger.warning("%s was to be published, but is damaged (%s); it is made again", run.id[:8], "; ".join(problems[:3]))
    workdir.discard_done()
    return None


def _end(run: StageRun, status: str, reason: str, kept: bool) -> None:
    """End a failed run; that the store cannot even take this must not hide why it failed."""
    try:
        run.end(status, reason, kept=kept)
    except (DensePathError, OSError) as error:
        logger.warning("run %s could not be marked as %s: %s", run.id[:8], status, error)
