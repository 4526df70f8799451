"""A run that is interrupted after any step, and another that goes on from what the first one left on the disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpr_core.training.recorder import Silent
from dpr_core.training.state import State, read, write


class Killed(BaseException):
    """As abrupt as SIGKILL, short of ending the tests."""


class Interruptible(Silent):
    """Keeps the state of every step below `folder`, and dies after `last` calls of `checkpoint`."""

    def __init__(self, folder: Path, last: int | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.last = last
        self.calls = 0

    def restore(self) -> dict[str, Any] | None:
        kept = sorted(self.folder.glob("*"))
        return read(kept[-1]) if kept else None

    def checkpoint(self, step: int, state: Callable[[], State]) -> None:
        place = self.folder / f"{step:06d}"
        place.mkdir(parents=True)
        write(state(), place)
        self.calls += 1
        if self.calls == self.last:
            raise Killed

    def by_step(self) -> dict[int, dict[str, float]]:
        """The metrics of every step but for those that measure time; those of a step taken twice are merged."""
        merged: dict[int, dict[str, float]] = {}
        for step, values in self.history:
            lasting = {name: value for name, value in values.items() if "per_second" not in name}
            merged.setdefault(step, {}).update(lasting)
        return merged
