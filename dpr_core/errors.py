"""Exceptions that users can act on: each message says what is wrong, where, and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

from dpr_core.redaction import redact


class DensePathError(Exception):
    """A failure of the work itself. The command line prints the message without a traceback and exits with 1.

    Whoever shows or stores the message need not look for keys in it.
    """

    exit_status = 1

    run: str | None = None
    """The MLflow run of the stage that it ended."""

    def __init__(self, message: str = "") -> None:
        super().__init__(redact(message))


class UsageError(DensePathError):
    """An invalid request: a wrong name, type, range or identifier. Exit status 2."""

    exit_status = 2


@contextmanager
def naming(what: str) -> Iterator[None]:
    """A UsageError from in here says what it is about: a row, a text, a question."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from error
