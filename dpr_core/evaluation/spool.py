"""A spool: rows in a temporary file, in any order in and in their order out. Memory holds where each begins."""

import json
import tempfile
import weakref
from array import array
from pathlib import Path
from typing import Any

from dpr_core.errors import DensePathError


class Spool:
    """So many JSON values, first written and then read. The file has no name: it goes with whoever holds it."""

    def __init__(self, length: int, folder: Path | None = None) -> None:
        """Without a folder it lies where temporary files do, which on some machines is memory."""
        self._folder = folder or Path(tempfile.gettempdir())
        self._starts = array("q", [0]) * length
        self._end = 0
        try:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
        except OSError as error:
            raise self._told(error) from None
        weakref.finalize(self, self._file.close)

    def __setitem__(self, i: int, value: Any) -> None:
        line = json.dumps(value).encode() + b"\n"
        try:
            self._file.write(line)
        except OSError as error:
            raise self._told(error) from None
        self._starts[i] = self._end
        self._end += len(line)

    def __getitem__(self, i: int) -> Any:
        try:
            self._file.seek(self._starts[i])
            return json.loads(self._file.readline().decode())
        except OSError as error:
            raise self._told(error) from None

    def _told(self, error: OSError) -> DensePathError:
        return DensePathError(
            f"what the judge says has no room in a temporary file in {self._folder} ({error.strerror}); check the "
            "disk and its free space, and run the same command again: verdicts that were paid for are kept"
        )
