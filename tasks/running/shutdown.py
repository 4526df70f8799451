"""An orderly end: SIGTERM and Ctrl-C are taken where nothing is lost, if such a place comes soon enough."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

GRACE_SECONDS = 20.0
"""How long an end may be put off. Prefect gives a cancelled process 30 seconds."""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


class Ending:
    """Knows whether an end was asked for, and takes it at the next `point`. A second signal takes it at once."""

    def __init__(self) -> None:
        self.asked = False
        self._taken = False
        self._points_until = 0.0
        self._take: Callable[[], None] | None = None

    def point(self) -> None:
        """Here nothing would be lost. Whoever calls this is expected to call it again soon."""
        if self.asked and self._take is not None:
            self._take()
        self._points_until = time.monotonic() + GRACE_SECONDS

    def ask(self, take: Callable[[], None]) -> None:
        """A signal arrived; `take` raises what it means."""
        if self._taken:
            return
        if not self.asked and time.monotonic() < self._points_until:
            self.asked, self._take = True, take
            signal.signal(signal.SIGALRM, lambda number, frame: take())
            signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)
            return
        take()

    def taken(self) -> None:
        """From here on signals wait until everything is cleaned up."""
        self._taken = True
        if self.asked:
            signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def terminable() -> Iterator[Ending]:
    """Inside the block SIGTERM raises Terminated, or what the handler that was there before raises, such as Prefect's;
    Ctrl-C raises what it always does. What is still put off at the end of the block is raised there.
    Threads other than the main one get no signals."""
    ending = Ending()
    if threading.current_thread() is not threading.main_thread():
        yield ending
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)}

    def arrived(number: int, frame: FrameType | None) -> None:
        def take() -> None:
            handler: Any = before[signal.Signals(number)]
            try:
                if not callable(handler):
                    raise Terminated(f"terminated by {signal.Signals(number).name}")
                handler(number, frame)
            except BaseException:
                ending.taken()
                raise

        ending.ask(take)

    signal.signal(signal.SIGTERM, arrived)
    if before[signal.SIGINT] is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, arrived)
    try:
        yield ending
        ending.point()
    finally:
        ending.taken()
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
