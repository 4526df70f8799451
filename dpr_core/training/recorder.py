"""Where a running method reports to. The library prints and stores nothing by itself."""

from collections.abc import Mapping
from typing import Any, Protocol


class Recorder(Protocol):
    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one step."""

    def advance(self, step: int, total: int, note: str = "") -> None:
        """Progress: `step` of `total` done."""

    def table(self, path: str, rows: list[dict[str, Any]]) -> None:
        """A table for people to read."""


class Silent:
    """A recorder for notebooks and tests that keeps the metrics in memory."""

    def __init__(self) -> None:
        self.history: list[tuple[int, dict[str, float]]] = []

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        self.history.append((step, dict(values)))

    def advance(self, step: int, total: int, note: str = "") -> None:
        pass

    def table(self, path: str, rows: list[dict[str, Any]]) -> None:
        pass
