"""What the body of a stage works with: its inputs, where it writes and reports to, and where its state is kept."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tasks.artifacts.store import Artifact, StageRun, Store
from tasks.running.shutdown import Ending
from tasks.running.stage_workdir import StageWorkdir, write_state

if TYPE_CHECKING:
    from dpr_core.state import State


class Progress(Protocol):
    def advance(self, step: int, total: int, note: str = "") -> None: ...


class Artifacts(Protocol):
    def fetch(self, run_id: str) -> Artifact:
        """Any verified artifact, such as an input of an input."""


class Work(Progress, Protocol):
    """What there is for a body in any case: one process may do the stage, or several, each with the same code.

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
        """The newest sound state of an interrupted attempt, with the output as it was then; None begins anew."""

    def checkpoint(self, step: int, state: "Callable[[], State]") -> None:
        """Keep the state if it is time, or if an end was asked for or MLflow is lost: then the end comes here."""


class Workspace:
    """The whole of it, for the process that owns the attempt."""

    def __init__(
        self,
        run: StageRun,
        store: Store,
        inputs: Mapping[str, str],
        bench: StageWorkdir,
        *,
        execution: Any = None,
        ending: Ending | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.run = run
        self.store = store
        self.inputs = dict(sorted(inputs.items()))
        self.scratch = bench.scratch
        self.output = bench.output
        self._bench = bench
        self._every = (getattr(execution, "checkpoint_minutes", None), getattr(execution, "checkpoint_steps", None))
        self._ending = ending or Ending()
        self._progress = progress

    def input(self, role: str) -> Artifact:
        return self.store.fetch(self.inputs[role])

    def artifact(self, run_id: str) -> Artifact:
        """Any other verified artifact, such as an input of an input."""
        return self.store.fetch(run_id)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.run.metrics(values, step)

    def table(self, path: str, rows: list[dict[str, Any]]) -> None:
        self.run.table(path, rows)

    def file(self, local: Path, folder: str) -> None:
        self.run.file(local, folder)

    def advance(self, step: int, total: int, note: str = "") -> None:
        if self._progress is not None:
            self._progress.advance(step, total, note)

    def restore(self) -> dict[str, Any] | None:
        from dpr_core.state import read

        folder = self.kept()
        return None if folder is None else read(folder)

    def kept(self) -> Path | None:
        """The folder of the state that `restore` reads; from here on the work goes on from it."""
        left = self._bench.newest()
        if left is None:
            return None
        self.run.last_step = left.last_step
        return left.folder

    def checkpoint(self, step: int, state: "Callable[[], State]") -> None:
        self.checkpoint_by(step, lambda folder: write_state(state(), folder))

    def checkpoint_by(self, step: int, write: Callable[[Path], None]) -> None:
        """`checkpoint`, with what writes the state into a folder."""
        if self._ending.asked or self.run.is_lost or self._bench.is_due(step, *self._every):
            self.run.flush()
            self._bench.keep(step, self.run.last_step, write)
        self._ending.point()
        self.run.give_up_if_lost()
