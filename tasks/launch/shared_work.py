"""The `Work` of one of several ranks: rank 0's belongs to the run's owner and decides, the others follow.

All ranks call the same methods in the same order, as they do with every collective.
"""

import logging
import shutil
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpr_core import distributed
from dpr_core.config.base import StageConfig
from dpr_core.config.execution import LaunchConfig
from dpr_core.errors import DensePathError, UsageError
from tasks.artifacts.retrying import LeaseLostError
from tasks.artifacts.store import Artifact, Store
from tasks.local_home import home_folder, identity_of, open_home
from tasks.registry import stage_named
from tasks.running.stage import Stage, torch_settings
from tasks.running.stage_workdir import StageWorkdir
from tasks.running.together import first, together
from tasks.running.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dpr_core.state import State
    from tasks.run_stage import Outcome

logger = logging.getLogger("dense_path")

HEARTBEAT_SECONDS = 20.0
"""So often the others hear that rank 0 is still getting ready: a lock may take longer than a collective may."""


class Stopped(KeyboardInterrupt):
    """Rank 0 has ended the stage and says why; the others just end."""


@dataclass(frozen=True)
class Task:
    """What rank 0 tells the others to do."""

    stage: str
    config: StageConfig
    inputs: Mapping[str, str]
    run: str
    turn: int
    key: str


class Lead:
    """Rank 0 until the body begins: the others wait for its word."""

    def __init__(self, launch: LaunchConfig) -> None:
        self._seconds = min(HEARTBEAT_SECONDS, 60 * launch.timeout_minutes / 4)
        self._ready = threading.Event()
        self._waiting = threading.Thread(target=self._keep_them_waiting, daemon=True)
        self._waiting.start()

    def tell(self, word: "Task | Outcome | Stopped") -> None:
        """What becomes of them. Only the first word counts."""
        if not self._ready.is_set():
            self._ready.set()
            self._waiting.join()
            first(lambda: word)

    def body(
        self, stage: Stage, config: StageConfig, artifacts: Mapping[str, Artifact], work: Workspace
    ) -> dict[str, float]:
        """The stage's body, in all ranks."""
        task = Task(stage.name, config, work.inputs, work.run.id, work.run.turn, work.workdir.folder.name)
        with waiting(stage.name, config.execution.launch):  # type: ignore[attr-defined]
            self.tell(task)
            return run_body(task, SharedWork(task, work, {artifact.id: artifact for artifact in artifacts.values()}))

    def _keep_them_waiting(self) -> None:
        while not self._ready.wait(self._seconds):
            first(lambda: None)


def told() -> "Task | Outcome | Stopped":
    """What rank 0 tells this one, however long that takes."""
    word: Task | Outcome | Stopped | None = None
    while word is None:
        word = first(lambda: None)
    return word


@contextmanager
def waiting(name: str, launch: LaunchConfig) -> "Iterator[None]":
    """That a collective took too long is said in a sentence."""
    try:
        yield
    except RuntimeError as error:
        if "timed out" not in str(error).lower():
            raise
        raise DensePathError(
            f"{name}: rank {distributed.rank()} has waited {launch.timeout_minutes:g} minutes for the others "
            "(execution.launch.timeout_minutes): one of them hangs, or is slower than that"
        ) from error


def run_body(task: Task, work: "SharedWork") -> dict[str, float]:
    with work.folders(), torch_settings(task.config):
        return stage_named(task.stage).body(task.config, work)


class SharedWork:
    """The `Work` of one of several ranks; `owner` is rank 0's."""

    def __init__(
        self, task: Task, owner: Workspace | None = None, verified: Mapping[str, Artifact] | None = None
    ) -> None:
        self.inputs = task.inputs
        self.store = self
        self._owner = owner
        folder = home_folder() / "work" / task.key
        self._workdir = StageWorkdir(folder, task.run, task.turn) if owner is None else owner.workdir
        rank = distributed.rank()
        self.scratch = self._workdir.scratch / (f"rank-{rank}" if owner is None else "")
        self.output = self._workdir.output if owner is not None else self.scratch / "output"
        """Every rank may write, which keeps the bodies plain; what rank 0 writes counts."""
        homes = together(self._home)
        mine = homes[rank]
        identities = [each.identity for each in homes]
        self._tidies = 0 < identities.index(mine.identity) == rank
        """Whether it is the first rank in a home that is not rank 0's."""
        self._keeps_states = len({each.states for each in homes}) == 1
        self._artifacts = _Artifacts(verified or {}, homes.index(mine))

    def _home(self) -> "_Home":
        identity, states = identity_of(open_home()), self._workdir.states
        return _Home(identity, str(home_folder()), states.place.where if states.is_shared else identity)

    @contextmanager
    def folders(self) -> "Iterator[None]":
        """Theirs to write into, gone once all have come to the end of the block."""
        if self._tidies:
            shutil.rmtree(self._workdir.scratch, ignore_errors=True)
        distributed.all_gather([None])
        self.output.mkdir(parents=True, exist_ok=True)
        yield
        if self._owner is None:
            shutil.rmtree(self.scratch, ignore_errors=True)
        distributed.all_gather([None])
        if self._tidies:
            shutil.rmtree(self._workdir.folder, ignore_errors=True)

    def input(self, role: str) -> Artifact:
        return self.fetch(self.inputs[role])

    def fetch(self, run_id: str) -> Artifact:
        return self._artifacts.fetch(run_id)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self._by_owner(lambda owner: owner.metrics(values, step))

    def table(self, path: str, rows: list[dict[str, Any]]) -> None:
        self._by_owner(lambda owner: owner.table(path, rows))

    def file(self, local: Path, folder: str) -> None:
        self._by_owner(lambda owner: owner.file(local, folder))

    def advance(self, step: int, total: int, note: str = "", at_most: bool = False) -> None:
        self._by_owner(lambda owner: owner.advance(step, total, note, at_most))

    def part(self, what: str, done: int, total: int) -> None:
        self._by_owner(lambda owner: owner.part(what, done, total))

    def _by_owner(self, do: Callable[[Workspace], None]) -> None:
        if self._owner is not None:
            with suppress(LeaseLostError):  # all end together, at the next checkpoint
                do(self._owner)

    def restore(self) -> dict[str, Any] | None:
        if not self._keeps_states:
            first(self._keep_none)
            return None
        saved = self._workdir.latest_state()
        if saved is None:
            return None
        if self._owner is not None:
            self._owner.goes_on_from(saved.last_step)
        return saved.read()

    def _keep_none(self) -> None:
        """Say so, and end it where there are some already."""
        what = "its processes have homes of their own, and DPR_STATES does not name one place for states in all of them"
        if self._workdir.is_resumable:
            raise UsageError(
                f"{what}, so that what was interrupted cannot be gone on with; set it on all machines, go on without "
                "the others, or have what is unfinished removed, to begin anew: dpr gc --unfinished"
            )
        logger.warning("%s: no states are kept, and what is interrupted begins anew", what)

    def checkpoint(self, step: int, state: "Callable[[], State]") -> None:
        if not first(lambda: self._first.is_due(step)):
            return
        if self._keeps_states:
            self._workdir.save_state(step, first(lambda: self._first.flushed()), state)
        if first(lambda: self._first.is_to_stop):
            if self._owner is not None:
                self._owner.stop_if_asked()
            raise Stopped

    @property
    def _first(self) -> Workspace:
        assert self._owner is not None
        return self._owner


@dataclass(frozen=True)
class _Home:
    """Where a rank reads and writes."""

    identity: str
    folder: str
    """As this machine calls it."""
    states: str


class _Artifacts:
    """Verified artifacts: the first rank of a home fetches and hashes them, and the others there take its word."""

    def __init__(self, verified: Mapping[str, Artifact], source: int) -> None:
        self._source = source
        self._verified = verified
        self._found: dict[str, Artifact] = {}
        self._store: Store | None = None

    def fetch(self, run_id: str) -> Artifact:
        if run_id not in self._found:
            is_mine = self._source == distributed.rank()
            found = together(lambda: self._fetch(run_id) if is_mine else None)[self._source]
            assert found is not None
            self._found[run_id] = found
        return self._found[run_id]

    def _fetch(self, run_id: str) -> Artifact:
        if run_id in self._verified:
            return self._verified[run_id]
        self._store = self._store or Store.open(retry=True)
        try:
            return self._store.fetch(run_id)
        except UsageError as error:
            if self._source == 0:
                raise
            raise DensePathError(
                f"{socket.gethostname()}, where another rank of the stage runs, cannot read an input: {error}; have "
                "MLFLOW_TRACKING_URI name one server on all machines"
            ) from error
