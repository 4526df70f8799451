"""All-or-none steps of the processes that run one stage: what each found goes to all, and an error of one to all."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from dpr_core.errors import DensePathError
from tasks.local_home import DiskFullError, is_full

T = TypeVar("T")


class OtherFailedError(DensePathError):
    """Another process of the stage failed, and tells of it."""


class _Failed(NamedTuple):
    rank: int
    full: bool
    needed: int | None
    of_system: bool
    text: str


def rank() -> int:
    """Of this process; 0 where it is the only one."""
    return int(_distributed().rank()) if _several() else 0


def world_size() -> int:
    return int(_distributed().world_size()) if _several() else 1


def together(find: Callable[[], T]) -> list[T]:
    """What each process finds, in the order of their ranks. Where one fails, all do."""
    if world_size() == 1:
        return [find()]
    mine: T | _Failed
    raised: Exception | None = None
    try:
        mine = find()
    except Exception as error:
        needed = error.needed if isinstance(error, DiskFullError) else None
        mine, raised = _Failed(rank(), is_full(error), needed, isinstance(error, OSError), str(error)), error
    found: list[T | _Failed] = _distributed().all_gather([mine])
    if raised is not None:
        raise raised
    for each in found:
        if isinstance(each, _Failed):
            if each.full:
                raise DiskFullError(each.needed or 0)
            kind: type[Exception] = OSError if each.of_system else OtherFailedError
            raise kind(f"in process {each.rank}: {each.text}")
    return found  # type: ignore[return-value]


def first(find: Callable[[], T]) -> T:
    """What rank 0 finds, in all; where it fails, all do."""
    found: Any = together(lambda: find() if rank() == 0 else None)[0]
    return found


def _several() -> bool:
    """Of a process that nobody launched with others it is known without torch, which takes seconds to import."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _distributed() -> Any:
    from dpr_core import distributed

    return distributed
