"""One rank of a stage: `python -m tasks.launch.worker LINE`, as `accelerate launch` starts it.

It runs the stage's body as a single process would. Requests to its workspace go to the process that owns the run
(`tasks/launch/launcher.py`); reports go there from rank 0 alone.
"""

import logging
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpr_core.errors import DensePathError, UsageError
from dpr_core.redaction import redact, redact_logs
from tasks.artifacts.run_records import Artifact
from tasks.launch.doors import knock, receive, send
from tasks.local_home import DiskFullError, is_full, open_home
from tasks.registry import stage_named
from tasks.running.stage import torch_settings
from tasks.running.stage_workdir import write_state

if TYPE_CHECKING:
    from dpr_core.state import State


class Line:
    """The connection to the process that owns the run. Where that process is gone, so is this one."""

    def __init__(self, address: str) -> None:
        self._line = knock(address, open_home())
        self._sending = threading.Lock()
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def begin(self, rank: int) -> dict[str, Any]:
        """Introduce this process; returns what it is to do."""
        send(self._line, rank=rank)
        return self._answers.get()

    def tell(self, request: str, /, **values: Any) -> None:
        with self._sending:
            send(self._line, ask=request, **values)

    def ask(self, request: str, /, **values: Any) -> Any:
        self.tell(request, **values)
        return self._answers.get()["answer"]

    def _listen(self) -> None:
        while True:
            try:
                self._answers.put(receive(self._line))
            except (EOFError, OSError):
                os._exit(1)


class Shared:
    """The `Work` of one of several processes."""

    def __init__(self, line: Line, rank: int, task: Mapping[str, Any]) -> None:
        self.inputs: Mapping[str, str] = task["inputs"]
        self.store = self
        self.scratch = Path(task["scratch"])
        self.output = Path(task["output"]) if rank == 0 else self.scratch / "output"
        """Every process may write, which keeps the bodies plain; what the first one writes counts."""
        self.output.mkdir(parents=True, exist_ok=True)
        self._line = line
        self._first = rank == 0

    def input(self, role: str) -> Artifact:
        return self.fetch(self.inputs[role])

    def fetch(self, run_id: str) -> Artifact:
        found = self._line.ask("fetch", id=run_id)
        return Artifact(**{**found, "path": Path(found["path"])})

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        if self._first:
            self._line.tell("metrics", values={name: float(value) for name, value in values.items()}, step=step)

    def table(self, path: str, rows: list[dict[str, Any]]) -> None:
        if self._first:
            self._line.tell("table", path=path, rows=rows)

    def file(self, local: Path, folder: str) -> None:
        if self._first:
            self._line.ask("file", local=str(local), folder=folder)

    def advance(self, step: int, total: int, note: str = "", at_most: bool = False) -> None:
        if self._first:
            self._line.tell("advance", step=step, total=total, note=note, at_most=at_most)

    def part(self, what: str, done: int, total: int) -> None:
        if self._first:
            self._line.tell("part", what=what, done=done, total=total)

    def restore(self) -> dict[str, Any] | None:
        from dpr_core.state import read

        folder = self._line.ask("restore")
        return None if folder is None else read(Path(folder))

    def checkpoint(self, step: int, state: "Callable[[], State]") -> None:
        folder = self._line.ask("checkpoint", step=step)
        if folder is not None:
            self._line.ask("written", needed=self._write(state(), Path(folder)))

    def _write(self, state: "State", folder: Path) -> int:
        """Returns the bytes that there was no room for."""
        from dpr_core import distributed

        try:
            write_state(state, folder, distributed.rank(), distributed.world_size())
        except DiskFullError as error:
            return error.needed
        return 0


class Passed(logging.Handler):
    """What is logged here is logged there."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        self._line.tell("log", logger=record.name, level=record.levelno, text=record.getMessage())


def main() -> None:
    rank = int(os.environ["RANK"])
    line = Line(sys.argv[1])
    task = line.begin(rank)
    _say_to(Path(task["log"]))
    redact_logs()
    if rank == 0:
        # All of them warn of the same.
        logging.basicConfig(level=logging.WARNING, handlers=[Passed(line)], force=True)
        logging.getLogger("dense_path").setLevel(logging.INFO)
    try:
        metrics = work(line, rank, task)
    except BaseException as error:
        print(redact(traceback.format_exc()), file=sys.stderr)
        line.tell("failed", kind=kind_of(error), text=redact(str(error)))
        # The others, who wait for this one, would fail as well: the end comes from there, and names the first.
        threading.Event().wait()
    line.ask("done", metrics=metrics)


def kind_of(error: BaseException) -> str:
    """The nearest of those that its owner raises as they are, or its own name."""
    if is_full(error):
        return DiskFullError.__name__
    known = [kind.__name__ for kind in type(error).__mro__ if kind in (UsageError, DensePathError)]
    return known[0] if known else type(error).__name__


def work(line: Line, rank: int, task: Mapping[str, Any]) -> dict[str, float]:
    """The stage's body, once the processes have found each other."""
    from dpr_core import distributed

    stage = stage_named(task["stage"])
    config = stage.config.model_validate(task["config"])
    together = distributed.state()
    with torch_settings(config):
        metrics = stage.body(config, Shared(line, rank, task))
    together.destroy_process_group()
    return metrics


def _say_to(log: Path) -> None:
    """Standard output and error, whoever writes to them."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)


if __name__ == "__main__":
    main()
