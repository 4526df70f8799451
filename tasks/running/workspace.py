"""The interface of a stage's body to its run: inputs, output folder, metrics, and checkpoints of its state."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tasks.artifacts.store import Artifact, StageRun, Store
from tasks.running.shutdown import Shutdown
from tasks.running.stage_workdir import StageWorkdir

if TYPE_CHECKING:
    from dpr_core.state import State


class Progress(Protocol):
    def advance(self, step: int, total: int, note: str = "", at_most: bool = False) -> None: ...

    def part(self, what: str, done: int, total: int) -> None: ...


class Artifacts(Protocol):
    def fetch(self, run_id: str) -> Artifact:
        """Any verified artifact, such as an input of an input."""


class Work(Progress, Protocol):
    """What every body can use: one process may run the stage, or several, each with the same code.

    Whatever is written into `output` is the artifact; of several processes, what the first one writes.
    """

    inputs: Mapping[str, str]
    store: Artifacts
    output: Path
    scratch: Path

    def input(self, role: str) -> Artifact:
        """The verified artifact in a role."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one step."""

    def table(self, path: str, rows: list[dict[str, Any]]) -> None:
        """Rows as a table for people to read; `path` ends in .json."""

    def file(self, local: Path, folder: str) -> None:
        """A file to show beside the payload."""

    def restore(self) -> dict[str, Any] | None:
        """The newest sound state of an interrupted run, with the output as it was then; None begins anew."""

    def checkpoint(self, step: int, state: "Callable[[], State]") -> None:
        """Save the state if it is time, or if a shutdown was requested or MLflow is lost: then that happens here."""


class Workspace:
    """The `Work` of the process that owns the run, with the store and the run themselves."""

    def __init__(
        self,
        run: StageRun,
        store: Store,
        inputs: Mapping[str, str],
        workdir: StageWorkdir,
        *,
        execution: Any = None,
        shutdown: Shutdown | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.run = run
        self.store = store
        self.inputs = dict(sorted(inputs.items()))
        self.scratch = workdir.scratch
        self.output = workdir.output
        self._workdir = workdir
        self._every = (getattr(execution, "checkpoint_minutes", None), getattr(execution, "checkpoint_steps", None))
        self._shutdown = shutdown or Shutdown()
        self._progress = progress

    def input(self, role: str) -> Artifact:
        return self.store.fetch(self.inputs[role])

    def artifact(self, run_id: str) -> Artifact:
        """Any other verified artifact, such as an input of an input."""
        return self.store.fetch(run_id)

    @property
    def workdir(self) -> StageWorkdir:
        """Of the stage."""
        return self._workdir

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.run.metrics(values, step)

    def table(self, path: str, rows: list[dict[str, Any]]) -> None:
        self.run.table(path, rows)

    def file(self, local: Path, folder: str) -> None:
        self.run.file(local, folder)

    def advance(self, step: int, total: int, note: str = "", at_most: bool = False) -> None:
        self.run.give_up_if_taken()
        if self._progress is not None:
            self._progress.advance(step, total, note, at_most)

    def part(self, what: str, done: int, total: int) -> None:
        self.run.give_up_if_taken()
        if self._progress is not None:
            self._progress.part(what, done, total)

    def restore(self) -> dict[str, Any] | None:
        saved = self._workdir.latest_state()
        if saved is None:
            return None
        self.goes_on_from(saved.last_step)
        return saved.read()

    def goes_on_from(self, last_step: int) -> None:
        """The run continues from this step."""
        self.run.last_step = last_step

    def checkpoint(self, step: int, state: "Callable[[], State]") -> None:
        if self.is_due(step):
            self._workdir.save_state(step, self.flushed(), state)
        self.stop_if_asked()

    def is_due(self, step: int) -> bool:
        """Whether to save a state now. Nothing would be lost here, and a shutdown may wait for the next time."""
        self.run.give_up_if_taken()
        self._shutdown.put_off()
        return self.is_to_stop or self._workdir.is_due(step, *self._every)

    @property
    def is_to_stop(self) -> bool:
        """Whether the stage ends here, its state saved."""
        return self._shutdown.requested or self.run.is_lost

    def flushed(self) -> int:
        """The last step of which metrics were logged, once all of them are with MLflow or on disk."""
        self.run.flush()
        return self.run.last_step

    def stop_if_asked(self) -> None:
        """Raise why the stage ends here, if it does."""
        self._shutdown.safe_point()
        self.run.give_up_if_lost()
