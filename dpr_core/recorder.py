"""The recorder protocol: metrics, progress, tables and checkpoints. The library prints and stores nothing itself."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from dpr_core.state import State


class Recorder(Protocol):
    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one step."""

    def advance(self, step: int, total: int, note: str = "") -> None:
        """Progress: `step` of `total` done."""

    def table(self, path: str, rows: list[dict[str, Any]]) -> None:
        """A table for people to read."""

    def restore(self) -> dict[str, Any] | None:
        """The newest state that an interrupted run of the same work left behind; None at a fresh start."""

    def checkpoint(self, step: int, state: Callable[[], State]) -> None:
        """Call after each step, with what gives the state that `restore` should bring back. Seldom is it asked for.

        An interruption that has been announced takes place in here, once the state is kept.
        """


class Silent:
    """A recorder for notebooks and tests that keeps the metrics in memory, and no state."""

    def __init__(self) -> None:
        self.history: list[tuple[int, dict[str, float]]] = []

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.history.append((step, dict(values)))

    def advance(self, step: int, total: int, note: str = "") -> None:
        pass

    def table(self, path: str, rows: list[dict[str, Any]]) -> None:
        pass

    def restore(self) -> dict[str, Any] | None:
        return None

    def checkpoint(self, step: int, state: Callable[[], State]) -> None:
        pass
