"""The recorder protocol: metrics, progress, tables and checkpoints. The library prints and stores nothing itself."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from dpr_core.state import State


class Recorder(Protocol):
    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log the metrics of one step."""

    def advance(self, step: int, total: int, note: str = "", at_most: bool = False) -> None:
        """Report progress: `step` of `total` done; with `at_most`, of no more than `total`."""

    def part(self, what: str, done: int, total: int) -> None:
        """Report progress inside of a step: `what` is done with `done` of `total`."""

    def table(self, path: str, rows: list[dict[str, Any]]) -> None:
        """Store a table for people to read."""

    def restore(self) -> dict[str, Any] | None:
        """The newest state of an interrupted run of the same work; None at a fresh start."""

    def checkpoint(self, step: int, state: Callable[[], State]) -> None:
        """Call after each step. `state` returns what `restore` should return, and is called only when a checkpoint is
        due.

        A pending interruption is raised from here, once the state is written.
        """


class InMemoryRecorder:
    """A recorder for notebooks and tests: metrics in memory, and no state."""

    def __init__(self) -> None:
        self.history: list[tuple[int, dict[str, float]]] = []

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.history.append((step, dict(values)))

    def advance(self, step: int, total: int, note: str = "", at_most: bool = False) -> None:
        pass

    def part(self, what: str, done: int, total: int) -> None:
        pass

    def table(self, path: str, rows: list[dict[str, Any]]) -> None:
        pass

    def restore(self) -> dict[str, Any] | None:
        return None

    def checkpoint(self, step: int, state: Callable[[], State]) -> None:
        pass
