"""A run that is interrupted after any step, and another that goes on from what the first one left on the disk."""

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dpr_core.recorder import InMemoryRecorder
from dpr_core.state import State, read, write


class Killed(BaseException):
    """As abrupt as SIGKILL, short of ending the tests."""


class Interruptible(InMemoryRecorder):
    """Keeps the state of every step below `folder`, and dies after `last` calls of `checkpoint`."""

    def __init__(self, folder: Path, last: int | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.last = last
        self.calls = 0
        self.tables: dict[str, Any] = {}
        self.taken_up: list[weakref.ref[torch.Tensor]] = []
        """Weights of the state that it goes on from."""

    def table(self, path: str, rows: list[dict[str, Any]]) -> None:
        self.tables[path] = rows

    def restore(self) -> dict[str, Any] | None:
        kept = sorted(self.folder.glob("*"))
        left = read(kept[-1]) if kept else None
        self.taken_up = [weakref.ref(weight) for weight in weights_in(left)]
        return left

    def checkpoint(self, step: int, state: Callable[[], State]) -> None:
        assert not any(weight() is not None for weight in self.taken_up), "a state stays in memory once it is taken up"
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


def weights_in(state: Any) -> Iterator[torch.Tensor]:
    """Of all trainers in a state."""
    if isinstance(state, dict):
        yield from state.get("weights", {}).values()
        for part in state.values():
            yield from weights_in(part)


def same(ours: Any, theirs: Any) -> bool:
    """Equal to the bit, whatever it is made of, but for what measures time."""
    if isinstance(ours, torch.Tensor):
        return isinstance(theirs, torch.Tensor) and ours.dtype == theirs.dtype and ours.equal(theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(
            same(value, theirs[name]) for name, value in ours.items() if "per_second" not in str(name)
        )
    return bool(ours == theirs)


def assert_the_same_however_interrupted(run: Callable[[Interruptible], Any], folder: Path) -> int:
    """`run` is interrupted once, after each of its checkpoints in turn, and then after every single one of them.

    All of these must come to what it comes to in one piece: what it returns, its metrics by step, its tables. Returns
    how many checkpoints there were.
    """
    whole = Interruptible(folder / "whole")
    expected = run(whole)
    plans = [[last, None] for last in range(1, whole.calls + 1)] + [[*[1] * whole.calls, None]]
    for number, plan in enumerate(plans):
        metrics: dict[int, dict[str, float]] = {}
        tables: dict[str, Any] = {}
        calls = 0
        for last in plan:
            recorder = Interruptible(folder / str(number), last)
            if last is None:
                found = run(recorder)
            else:
                with pytest.raises(Killed):
                    run(recorder)
            calls += recorder.calls
            tables |= recorder.tables
            for step, values in recorder.by_step().items():
                metrics.setdefault(step, {}).update(values)
        assert same(found, expected), plan
        assert same(metrics, whole.by_step()), plan
        assert tables == whole.tables, plan
        assert calls == whole.calls, "nothing that was kept is done again"
    return whole.calls
