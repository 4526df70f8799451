"""The store as it was at one moment, for plans that ask it about a thousand stages."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from tasks.artifacts.run_records import Record, record_of


class Snapshot:
    """Answers from memory. What is on disk is still looked at, file by file."""

    def __init__(self, runs: Iterable[Any], problems: Callable[[Any], list[str]]) -> None:
        self._problems = problems
        self._runs = {str(run.info.run_id): run for run in runs}
        self._records = {run_id: record_of(run) for run_id, run in self._runs.items()}
        self._finished: dict[str, list[Record]] = defaultdict(list)
        self._alike: dict[tuple[str, str], list[Record]] = defaultdict(list)
        for record in self._records.values():
            self._alike[record.stage, record.name].append(record)
            if record.finished:
                self._finished[record.key].insert(0, record)
        self.digests = {run_id: record.digest for run_id, record in self._records.items()}

    def record(self, run_id: str) -> Record | None:
        """An artifact by its full ID; none if it is not there, or came later."""
        return self._records.get(run_id)

    def finished(self, key: str) -> list[Record]:
        """The finished artifacts with this key, earliest first."""
        return self._finished.get(key, [])

    def alike(self, stage: str, name: str) -> list[Record]:
        """What was made or attempted under this name, newest first."""
        return self._alike.get((stage, name), [])

    def problems(self, run_id: str) -> list[str]:
        """Every reason not to trust a finished artifact, by the hashes that this process has made of its files."""
        return self._problems(self._runs[run_id])
