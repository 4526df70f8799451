"""Retry with exponential back-off: which errors are transient, and for how long a server may be silent."""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from dpr_core.errors import DensePathError, UsageError
from tasks.local_home import is_full

logger = logging.getLogger("dense_path")

T = TypeVar("T")

VARIABLE = "DPR_PATIENCE_SECONDS"
DEFAULT_SECONDS = 600.0

FIRST_PAUSE = 0.25
LONGEST_PAUSE = 10.0

TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})

TRANSIENT_WORDS = (
    # SQLite
    "database is locked",
    "database table is locked",
    # PostgreSQL
    "terminating connection",
    "server closed the connection",
    "connection is closed",
    "connection already closed",
    "closed unexpectedly",
    "consuming input failed",
    "is starting up",
    "is shutting down",
    "in recovery mode",
    "too many clients",
    "remaining connection slots",
    "deadlock detected",
    "invalid transaction is rolled back",
    # HTTP and S3
    "connection refused",
    "connection reset",
    "connection aborted",
    "connection was closed",
    "max retries exceeded",
    "timed out",
    "timeout exception",
    "timeout on endpoint",
    "could not connect to the endpoint",
    "reached max retries",
    "response ended prematurely",
    "incompleteread",
    "slowdown",
    "serviceunavailable",
    *(f"({status})" for status in sorted(TRANSIENT_STATUS)),
    "temporary failure in name resolution",
)
"""Libraries wrap one another's errors, often as mere text, so that the text is what can be relied on."""

PERMANENT_WORDS = ("certificate verify failed", "password authentication failed", "name or service not known")


def is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed later: nobody answered, or what answered said that it could not."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    texts = [str(link).lower() for link in chain]
    if isinstance(error, LeaseLostError):
        return False
    if is_full(error) or any(word in text for word in PERMANENT_WORDS for text in texts):
        return False
    return (
        any(isinstance(link, ConnectionError | TimeoutError) for link in chain)
        or any(getattr(getattr(link, "response", None), "status_code", None) in TRANSIENT_STATUS for link in chain)
        or any(word in text for word in TRANSIENT_WORDS for text in texts)
    )


def retry_seconds() -> float:
    """`DPR_PATIENCE_SECONDS`, if set."""
    setting = os.environ.get(VARIABLE, "").strip()
    try:
        seconds = float(setting) if setting else DEFAULT_SECONDS
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise UsageError(
            f"{VARIABLE}: {setting!r} is no number of seconds; it says how long MLflow may be silent, "
            f"{DEFAULT_SECONDS:g} s where it is not set"
        )
    return seconds


_SILENT_SINCE: dict[str, float] = {}
"""By address: a pipeline and its stages open the store each for itself, and wait together."""


class UnansweredError(DensePathError):
    """MLflow has been silent for so long that nothing else can be done either."""


class LeaseLostError(DensePathError):
    """Another process has taken over what this one was at: nothing more is written from here."""


class RetryPolicy:
    """How long a server may be silent. The time runs from its first failure since it last answered, to any request."""

    def __init__(
        self, where: str, seconds: float, probe: Callable[[], None], explain: Callable[[BaseException], str]
    ) -> None:
        self.where = where
        self.seconds = seconds
        self._probe = probe
        self._explain = explain

    @property
    def exhausted(self) -> bool:
        """Whether it has been silent for longer than it may be."""
        return self.where in _SILENT_SINCE and self._left() <= 0

    def try_once(self, call: Callable[[], object]) -> bool:
        """Whether `call` succeeded; False if the server is away. It waits no longer than a probe takes."""
        try:
            self._probe()
            call()
        except Exception as error:
            self._failed(error)
            return False
        self._answered()
        return True

    def call(self, request: Callable[[], T]) -> T:
        """What `request` returns, retried with growing pauses while the server is away."""
        pause = FIRST_PAUSE
        while True:
            try:
                if self.where in _SILENT_SINCE:
                    self._probe()
                result = request()
            except Exception as error:
                if self.seconds == 0:
                    raise
                self._failed(error)
                if self.exhausted:
                    raise self.gave_up(error) from None
            else:
                self._answered()
                return result
            time.sleep(max(0.0, min(pause, self._left())))
            pause = min(2 * pause, LONGEST_PAUSE)

    def gave_up(self, error: BaseException | None = None) -> UnansweredError:
        """The error for a server that has been silent for too long."""
        why = f" ({self._explain(error)})" if error is not None else ""
        return UnansweredError(
            f"MLflow at {self.where} has not answered for {self._silent():.0f} s{why}; "
            f"when it does, give the same command again. {VARIABLE} sets how long it is waited for"
        )

    @contextmanager
    def at_most(self, seconds: float) -> Iterator[None]:
        """Inside the block, wait no longer than this."""
        before, self.seconds = self.seconds, min(seconds, self.seconds)
        try:
            yield
        finally:
            self.seconds = before

    def _failed(self, error: Exception) -> None:
        """Take note of a transient failure; raise any other."""
        if not is_transient(error):
            raise error
        if self.where not in _SILENT_SINCE:
            _SILENT_SINCE[self.where] = time.monotonic()
            logger.warning(
                "MLflow at %s does not answer (%s); it is tried again for up to %.0f s, and nothing is lost meanwhile",
                self.where,
                self._explain(error),
                self.seconds,
            )

    def _answered(self) -> None:
        if self.where in _SILENT_SINCE:
            logger.warning("MLflow at %s answers again, after %.0f s", self.where, self._silent())
            _SILENT_SINCE.pop(self.where, None)

    def _silent(self) -> float:
        now = time.monotonic()
        return now - _SILENT_SINCE.get(self.where, now)

    def _left(self) -> float:
        return self.seconds - self._silent()
