"""Exceptions that users can act on: each message says what is wrong, where, and what to do."""


class DensePathError(Exception):
    """A failure of the work itself. The command line prints the message without a traceback and exits with 1."""

    exit_status = 1


class UsageError(DensePathError):
    """An invalid request: a wrong name, type, range or identifier. Exit status 2."""

    exit_status = 2
