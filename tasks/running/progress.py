"""A live display of long work on stderr: a bar in a terminal, a line now and then elsewhere."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from dpr_core.text import escape_control

SECONDS_BETWEEN_LINES = 10.0


class StageProgress:
    """Shows one stage: its name, step, rate, time left and a note."""

    def __init__(self, name: str) -> None:
        self.name = escape_control(name)
        self.console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._started = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._last_line = self._started

    def __enter__(self) -> "StageProgress":
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", style="bold", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}", markup=False),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}", markup=False),
                console=self.console,
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, step: int, total: int | None, note: str = "") -> None:
        note = escape_control(note)
        now = time.monotonic()
        if self._first is None or step < self._first[1]:
            self._first = (now, step)
        elapsed = now - self._first[0]
        rate = (step - self._first[1]) / elapsed if elapsed > 0 else 0.0
        shown = f"{rate:.1f}/s" if rate else ""
        if self._bar is not None:
            if self._task is None:
                self._task = self._bar.add_task(self.name, total=total, rate="", note="")
            self._bar.update(self._task, completed=step, total=total, rate=shown, note=note)
        elif now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = f", {(total - step) / rate:.0f} s left" if rate and total is not None else ""
            of = f" of {total}" if total is not None else ""
            pace = f" ({shown}{left})" if shown else ""
            print(f"{self.name}: {step}{of}{pace} {note}".rstrip(), file=sys.stderr, flush=True)
