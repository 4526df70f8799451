"""A live display of long work on stderr: a bar in a terminal, a line now and then elsewhere."""

import sys
import threading
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from dpr_core.text import escape_control

SECONDS_BETWEEN_LINES = 10.0
LONGEST_BETWEEN_LINES = 60.0
"""Lines of a long stage are this far apart. Where nothing happens for so long, a line says that."""


class StageProgress:
    """Shows one stage: its name, step, pace, time left, a note, and what it does inside of the step."""

    def __init__(
        self, name: str, told: Callable[[int, int | None, str], None] = lambda step, total, note: None
    ) -> None:
        self.name = escape_control(name)
        self._told = told
        self.console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._started = time.monotonic()
        self._first: tuple[float, int] | None = None
        self._count = self._pace = self._note = self._part = ""
        self._last_line = self._started
        self._printing = threading.Lock()
        self._ended = threading.Event()

    def __enter__(self) -> "StageProgress":
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", style="bold", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[said]}", markup=False),
                console=self.console,
                transient=True,
            )
            self._bar.start()
        else:
            threading.Thread(target=self._break_silence, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._bar is not None:
            self._bar.stop()

    def advance(self, step: int, total: int | None, note: str = "", at_most: bool = False) -> None:
        """`step` of `total` are done; with `at_most` it may end before."""
        now = time.monotonic()
        if self._first is None or step < self._first[1]:
            self._first = (now, step)
        self._count = f"{step} of {total}" if total is not None else str(step)
        self._pace = pace(step - self._first[1], now - self._first[0], None if total is None else total - step, at_most)
        self._note, self._part = escape_control(note), ""
        self._told(step, total, self._said())
        if self._bar is not None:
            self._bar.update(self._bar_task(), completed=step, total=total, said=self._said())
        else:
            self._print_if_due(now)

    def part(self, what: str, done: int, total: int) -> None:
        """Inside of a step: `what` is done with `done` of `total`."""
        self._part = f"{escape_control(what)} {done} of {total}"
        if self._bar is not None:
            self._bar.update(self._bar_task(), said=self._said())
        else:
            self._print_if_due(time.monotonic())

    def _bar_task(self) -> TaskID:
        assert self._bar is not None
        if self._task is None:
            self._task = self._bar.add_task(self.name, total=None, said="")
        return self._task

    def _said(self) -> str:
        return ", ".join(filter(None, (self._pace, self._note, self._part)))

    def _print_if_due(self, now: float) -> None:
        between = min(max(SECONDS_BETWEEN_LINES, (now - self._started) / 30), LONGEST_BETWEEN_LINES)
        if now - self._last_line >= between:
            self._print(f"{self._count} ({self._pace})" if self._pace else self._count, self._note, self._part)

    def _break_silence(self) -> None:
        while not self._ended.wait(LONGEST_BETWEEN_LINES / 4):
            silent = time.monotonic() - self._last_line
            if silent >= LONGEST_BETWEEN_LINES:
                self._print(self._count, self._note, self._part, f"no news for {silent:.0f} s")

    def _print(self, *words: str) -> None:
        with self._printing:
            self._last_line = time.monotonic()
            print(f"{self.name}: {', '.join(filter(None, words))}", file=sys.stderr, flush=True)


def pace(steps: int, seconds: float, left: int | None, at_most: bool = False) -> str:
    """How fast it goes, and how long what is left will take at that; empty where nothing is known yet."""
    if steps <= 0 or seconds <= 0:
        return ""
    each = seconds / steps
    speed = f"{1 / each:.1f}/s" if each < 1 else f"{each:.1f} s each"
    return f"{speed}, {'at most ' if at_most else ''}{duration(each * left)} left" if left else speed


def duration(seconds: float) -> str:
    """In the unit that a person would use."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
