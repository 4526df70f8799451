"""Observer pattern: whoever asks for a stage may see how far it is, and have it wait for its turn. Knows no Prefect."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar

from dpr_core.config.base import StageConfig


class Observer:
    """Sees nothing, and lets everything run at once."""

    def turn(
        self, stage: str, config: StageConfig, wanted: Callable[[], bool] = lambda: True
    ) -> AbstractContextManager[object]:
        """Entered before a stage that has to run begins, left when it has ended. Nobody waits for what is not wanted
        any more."""
        return nullcontext()

    def progress(self, step: int, total: int | None, note: str) -> None:
        """`step` of `total` are done. Called often, and must not take long."""


OBSERVER: ContextVar[Observer] = ContextVar("observer", default=Observer())  # noqa: B039
"""Of the stages that this process does in this context."""
