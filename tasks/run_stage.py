"""Running one stage: check its inputs, reuse what is there, else do the work and publish it whole or not at all."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from dpr_core.config.base import StageConfig
from dpr_core.config.execution import ExecutionConfig, LaunchConfig
from dpr_core.errors import DensePathError, UsageError
from tasks.artifacts.identity import InputEntry, Manifest, stage_key
from tasks.artifacts.store import Artifact, Record, StageRun, Store
from tasks.local_home import is_full, no_space
from tasks.locks import exclusive
from tasks.running.explain_rerun import FORCED, UNEXPLAINED, Wanted, differences
from tasks.running.shutdown import terminable
from tasks.running.stage_workdir import StageWorkdir
from tasks.running.workspace import Progress, Work, Workspace

__all__ = ["Outcome", "Progress", "Stage", "Work", "Workspace", "run_stage"]

logger = logging.getLogger("dense_path")

ANY_ROLE = "*"


@dataclass(frozen=True)
class Stage:
    """A step of the pipeline. `inputs` maps a role to the stages accepted in it; the role `*` stands for any number."""

    name: str
    version: int
    config: type[StageConfig]
    body: Callable[[StageConfig, Any], dict[str, float]]
    describe: Callable[[StageConfig], str]
    inputs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    pin: Callable[[Any], StageConfig] = lambda config: config
    """Fills in what the config refers to but does not hold, such as the hash of a file's content."""
    shared: bool = False
    """Whether several processes can do it together. Then its body works with what `Work` says, and no more."""
    missing: Callable[[Any], str | None] = lambda config: None
    """What `pin` would have to fetch first. A plan fetches nothing; `preflight` does."""
    preflight: Callable[[Sequence[Any]], None] = lambda configs: None
    """Gets all configs that are to run, before the first stage starts, and raises what is sure to make one fail."""

    def launch(self, config: StageConfig) -> LaunchConfig | None:
        """The processes that are to do it together; None where this one does it alone."""
        launch = getattr(getattr(config, "execution", None), "launch", None)
        return launch if launch is not None and launch.processes > 1 else None

    def check_roles(self, given: Iterable[str]) -> None:
        """Refuse roles that this stage does not have, and the lack of one that it needs."""
        roles = set(given)
        unknown = roles - set(self.inputs)
        if unknown and ANY_ROLE not in self.inputs:
            known = ", ".join(self.inputs) or "none"
            raise UsageError(f"{self.name} has no input called {', '.join(sorted(unknown))}; its inputs: {known}")
        missing = set(self.inputs) - roles - self.optional - {ANY_ROLE}
        if missing:
            needs = [f"{role} (an artifact of {' or '.join(self.inputs[role])})" for role in sorted(missing)]
            raise UsageError(f"{self.name} needs the input {' and '.join(needs)}")

    def accepted(self, role: str) -> tuple[str, ...]:
        """The stages whose artifacts fit a role."""
        return self.inputs.get(role, self.inputs.get(ANY_ROLE, ()))


@dataclass(frozen=True)
class Outcome:
    """What came of asking for a stage."""

    stage: str
    name: str
    id: str
    status: Literal["ran", "reused"]
    seconds: float
    metrics: dict[str, float]


def run_stage(
    stage: Stage,
    config: StageConfig,
    inputs: Mapping[str, str],
    *,
    store: Store,
    parent: str | None = None,
    name: str | None = None,
    not_before: datetime | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Reuse a finished artifact of the same key, or make one. Exactly one process at a time works on a key.

    What was begun before `not_before` is neither reused nor taken up.
    """
    name = name or stage.name
    config = stage.pin(config)
    started = time.monotonic()
    artifacts = _verified_inputs(stage, inputs, store)
    digests = {role: artifact.digest for role, artifact in artifacts.items()}
    key = stage_key(stage.name, stage.version, config.identity(), digests)

    def waiting() -> None:
        logger.info("%s: another process is making this; waiting for it", name)

    with terminable() as ending, exclusive(store.home / "locks" / f"{key}.lock", waiting):
        there = recent(store.finished(key), not_before)
        found, damage = reusable(there, lambda run_id: store.verify(run_id, quick=True))
        for line in damage:
            logger.warning("%s: not reused: %s", name, line)
        bench = StageWorkdir(store.home / "work" / key)
        if found is not None:
            if bench.attempt() == found.id:
                bench.clear()
            return Outcome(stage.name, name, found.id, "reused", time.monotonic() - started, found.results)
        check_launch(stage, config)
        run = _taken_up(store, bench, key, name, parent, not_before)
        for stale in store.end_stale(key, but=run):
            logger.warning("%s: attempt %s had been killed; it had left nothing to go on from", name, stale[:8])
        if run is None:
            wanted = Wanted(name, stage.name, stage.version, config, digests, frozenset(digests))
            reasons = damage or ([FORCED] if not_before else _changed(wanted, store))
            why = "; ".join(reasons) or UNEXPLAINED
            logger.info("%s: runs, because: %s", name, why)
            bench.clear()
            run = store.begin(
                stage=stage.name,
                name=name,
                version=stage.version,
                key=key,
                config=config,
                inputs={role: artifact.id for role, artifact in artifacts.items()},
                parent=parent,
                description=f"{stage.describe(config)}\n\nRan because: {why}.",
            )
        work = Workspace(
            run,
            store,
            {role: artifact.id for role, artifact in artifacts.items()},
            bench,
            execution=getattr(config, "execution", None),
            ending=ending,
            progress=progress,
        )
        metrics = _attempt(stage, config, artifacts, work, bench)
    return Outcome(stage.name, name, run.id, "ran", time.monotonic() - started, metrics)


def check_launch(stage: Stage, config: StageConfig) -> None:
    """Refuse more processes than the stage can be done by, or than there are GPUs for."""
    if launch := stage.launch(config):
        if not stage.shared:
            raise UsageError(
                f"{stage.name} is done by one process, not {launch.processes}: leave its execution.launch as it is"
            )
        from tasks.launch.launcher import check_machine

        check_machine(stage.name, launch)


def recent(records: Iterable[Record], not_before: datetime | None) -> list[Record]:
    """Those that were not begun before a moment; without one, all."""
    return [record for record in records if not_before is None or record.started >= not_before]


def _taken_up(
    store: Store, bench: StageWorkdir, key: str, name: str, parent: str | None, not_before: datetime | None
) -> StageRun | None:
    """The interrupted attempt whose work lies on the bench, if there is one."""
    attempt = bench.attempt()
    run = None if attempt is None else store.take_up(attempt, key, parent, not_before)
    if run is not None:
        logger.info("%s: goes on with attempt %s, which was interrupted", name, run.id[:8])
    return run


def reusable(finished: Iterable[Record], problems_of: Callable[[str], list[str]]) -> tuple[Record | None, list[str]]:
    """The first of the finished artifacts of a key that is sound, and what is wrong with those before it."""
    damage: list[str] = []
    for record in finished:
        problems = problems_of(record.id)
        if not problems:
            return record, damage
        damage.append(f"artifact {record.title} is damaged ({'; '.join(problems[:3])})")
    return None, damage


def _changed(wanted: Wanted, store: Store) -> list[str]:
    same = store.records(wanted.stage, wanted.name)
    return differences(wanted, same, store.digests({source for record in same for source in record.inputs.values()}))


def _verified_inputs(stage: Stage, inputs: Mapping[str, str], store: Store) -> dict[str, Artifact]:
    stage.check_roles(inputs)
    artifacts = {}
    for role, reference in sorted(inputs.items()):
        try:
            artifacts[role] = store.fetch(reference, stages=stage.accepted(role))
        except DensePathError as error:
            raise type(error)(f"input {role} of {stage.name}: {error}") from error
    return artifacts


def _attempt(
    stage: Stage, config: StageConfig, artifacts: Mapping[str, Artifact], work: Workspace, bench: StageWorkdir
) -> dict[str, float]:
    run = work.run
    try:
        bench.open(run.id)
        run.keep_unsent_in(bench.unsent)
        manifest, metrics = _finished(run, bench) or _worked(stage, config, artifacts, work, bench)
        run.results(metrics)
        run.publish(work.output, manifest)
    except BaseException as error:
        if bench.holds_work:
            logger.warning("%s: interrupted; what is done is kept, and the same command goes on from there", stage.name)
        else:
            bench.clear()
        _end(run, "FAILED" if isinstance(error, Exception) else "KILLED", f"{type(error).__name__}: {error}")
        if is_full(error) and not isinstance(error, DensePathError):
            raise no_space(work.store.home) from error
        raise
    bench.clear()
    return metrics


def _worked(
    stage: Stage, config: StageConfig, artifacts: Mapping[str, Artifact], work: Workspace, bench: StageWorkdir
) -> tuple[Manifest, dict[str, float]]:
    """Do what the stage does, and say what came of it."""
    entries: dict[str, InputEntry] = {role: {"id": a.id, "digest": a.digest} for role, a in artifacts.items()}
    if launch := stage.launch(config):
        from tasks.launch.launcher import launched

        metrics = launched(stage.name, config, launch, work)
    else:
        with torch_as_in(config):
            metrics = stage.body(config, work)
    manifest = Manifest.of_directory(
        work.output,
        stage=stage.name,
        stage_version=stage.version,
        config=config.identity(),
        seed=config.seed,
        inputs=entries,
    )
    if not manifest.files:
        raise DensePathError(f"{stage.name} wrote nothing into its output, so there is nothing to publish")
    work.run.flush()
    bench.finish(manifest, metrics, work.run.last_step)
    return manifest, metrics


def _finished(run: StageRun, bench: StageWorkdir) -> tuple[Manifest, dict[str, float]] | None:
    """What an attempt came to that was interrupted while it was published; None where it has to work on."""
    done = bench.finished()
    if done is None:
        return None
    manifest, metrics, run.last_step = done
    problems = run.unpublished(bench.output, manifest)
    if not problems:
        return manifest, metrics
    logger.warning("%s was to be published, but is damaged (%s); it is made again", run.id[:8], "; ".join(problems[:3]))
    bench.reopen()
    return None


def torch_as_in(config: StageConfig) -> AbstractContextManager[None]:
    """Threads as configured, and torch's generators, which dropout draws from, as the seed has them: what else this
    process made before must not matter."""
    execution = getattr(config, "execution", None)
    if not isinstance(execution, ExecutionConfig):
        return nullcontext()
    import torch

    from dpr_core.training.torch_runtime import torch_threads

    torch.manual_seed(config.seed)
    return torch_threads(execution.threads)


def _end(run: StageRun, status: str, reason: str) -> None:
    """End a failed attempt; that the store cannot even take this must not hide why it failed."""
    try:
        run.end(status, reason)
    except (DensePathError, OSError) as error:
        logger.warning("attempt %s could not be marked as %s: %s", run.id[:8], status, error)
