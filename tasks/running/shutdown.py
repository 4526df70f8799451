"""Graceful shutdown: SIGTERM, SIGHUP and Ctrl-C wait a while for the next safe point, where nothing is lost."""

import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

GRACE_SECONDS = 20.0
"""How long a shutdown may be put off. Prefect gives a cancelled process 30 seconds."""


TERMINATIONS = (signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived, or SIGHUP, which a terminal that is closed sends."""

    def __init__(self, number: int) -> None:
        super().__init__(f"terminated by {signal.Signals(number).name}")
        if number == signal.SIGHUP:
            _leave_closed_terminal()


class TimedOut(KeyboardInterrupt):
    """The time that a stage may take is over. It ends as by a signal, which no library takes for an error."""


@contextmanager
def terminations_raise() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Terminated inside the block, unless handled already or, as by nohup, ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    unhandled = [number for number in TERMINATIONS if signal.getsignal(number) is signal.SIG_DFL]
    for number in unhandled:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number in unhandled:
            signal.signal(number, signal.SIG_DFL)


requested = threading.Event()
"""Whether any signal has arrived that is to end this process."""


class Shutdown:
    """Whether a shutdown was requested; it starts at the next safe point. A second signal starts it at once."""

    def __init__(self) -> None:
        self.requested = False
        self._started = False
        self._safe_points_until = 0.0
        self._start: Callable[[], None] | None = None

    def safe_point(self) -> None:
        """Here nothing would be lost. Whoever calls this is expected to call it again soon."""
        if self.requested and self._start is not None:
            self._start()
        self.put_off()

    def put_off(self) -> None:
        """A shutdown may wait for a safe point, which is to come soon."""
        self._safe_points_until = time.monotonic() + GRACE_SECONDS

    def hand_over(self) -> None:
        """Another process sees to the shutdown that was requested, in the same time; this one waits a little longer."""
        signal.setitimer(signal.ITIMER_REAL, 1.5 * GRACE_SECONDS)

    def request(self, start: Callable[[], None]) -> None:
        """A signal arrived, or the time is over; `start` raises what that means."""
        if self._started:
            return
        if not self.requested and time.monotonic() < self._safe_points_until:
            self.requested, self._start = True, start
            signal.signal(signal.SIGALRM, lambda number, frame: start())
            signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)
            return
        start()

    @contextmanager
    def time_limit(self, seconds: float | None) -> Iterator[None]:
        """Raise TimedOut once so many seconds are over and the block has not ended, at the next safe point if one is
        soon. Threads other than the main one have all the time."""
        if seconds is None or threading.current_thread() is not threading.main_thread():
            yield
            return

        def start() -> None:
            self.block_signals()
            raise TimedOut

        signal.signal(signal.SIGALRM, lambda number, frame: self.request(start))
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        finally:
            if not self.requested or self._start is start:
                signal.setitimer(signal.ITIMER_REAL, 0)
                self.requested, self._start = False, None

    def block_signals(self) -> None:
        """From here on signals wait until everything is cleaned up."""
        self._started = True
        if self.requested:
            signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def graceful_shutdown() -> Iterator[Shutdown]:
    """Inside the block SIGTERM and SIGHUP raise Terminated, or what the handler that was there before raises, such as
    Prefect's; Ctrl-C raises what it always does. What is ignored (SIGHUP under nohup, SIGINT in a script's background)
    stays so. What is still put off at the end of the block is raised there. Threads other than the main one get no
    signals."""
    shutdown = Shutdown()
    if threading.current_thread() is not threading.main_thread():
        yield shutdown
        return
    requests = (*TERMINATIONS, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in (*requests, signal.SIGALRM)}

    def on_signal(number: int, frame: FrameType | None) -> None:
        def start() -> None:
            handler: Any = before[signal.Signals(number)]
            try:
                if not callable(handler):
                    raise Terminated(number)
                handler(number, frame)
            except BaseException:
                shutdown.block_signals()
                raise

        requested.set()
        shutdown.request(start)

    for number in requests:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, on_signal)
    try:
        yield shutdown
        shutdown.safe_point()
    finally:
        shutdown.block_signals()
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _leave_closed_terminal() -> None:
    """What is still to be said is said to nobody: writing to a terminal that is gone is an error."""
    for descriptor in (0, 1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                null = os.open(os.devnull, os.O_RDWR)
                os.dup2(null, descriptor)
                os.close(null)
