"""Where demonstrations come from: a Protocol, local files, the lab, and the table of all kinds of source."""

import json
from collections.abc import Callable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, Protocol

from dpr_core.config.data import FileSourceConfig, LabSourceConfig, SourceConfig
from dpr_core.data.hub import HubDataset
from dpr_core.data.rows import BadRow, Demonstration, RowReader, Unusable
from dpr_core.data.tables import CommaSeparated, LocalFile, ParquetTable
from dpr_core.errors import DensePathError, UsageError
from dpr_core.hashing import of_file, of_folder
from dpr_core.lab import programs

_LONGEST_LINE = 2**24


class DemonstrationSource(Protocol):
    """Rows in one pass, read as they are asked for."""

    name: str
    """What to call it in messages."""

    expected_rows: int | None
    """How many rows there will be, where that is known beforehand."""

    def rows(self) -> Iterator[tuple[str, Demonstration | BadRow]]:
        """Each row with its place."""
        ...


class JsonLines(LocalFile):
    """A local file with one JSON object a line. Blank lines are passed over."""

    def rows(self) -> Iterator[tuple[str, Demonstration | BadRow]]:
        reader = RowReader(self._columns, self.name)
        with self._path.open("rb") as stream:
            yield from json_lines(stream, self.name, reader)
        reader.finish()


def json_lines(stream: BufferedReader, name: str, reader: RowReader) -> Iterator[tuple[str, Demonstration | BadRow]]:
    """Each line that is not blank of an open JSONL file, with its place: what `reader` makes of it, or a bad row."""
    first = True
    for number, line, whole in _numbered_lines(stream, name):
        where = f"{name}:{number}"
        text = line.decode(errors="replace")
        try:
            value = _parsed(line, whole, first, name)
            yield where, reader.read(value, fallback_id=f"row-{number}")
        except Unusable as problem:
            yield where, BadRow.of(where, str(problem), text)
        first = False


class LabDemonstrations:
    """Demonstrations that a program writes."""

    def __init__(self, config: LabSourceConfig, seed: int) -> None:
        self.name = "the lab"
        self.expected_rows: int | None = config.rows
        self._config = config
        self._seed = seed

    def rows(self) -> Iterator[tuple[str, Demonstration | BadRow]]:
        for number, (id, prompt, response) in enumerate(programs.demonstrations(self._config, self._seed), 1):
            yield f"lab:{number}", Demonstration(id, "", prompt, response)


_SOURCES: Mapping[str, Callable[[Any, int], DemonstrationSource]] = {
    "lab": LabDemonstrations,
    "file": lambda config, seed: _file(config),
    "hub": lambda config, seed: HubDataset(config),
}


def open_source(config: SourceConfig, seed: int) -> DemonstrationSource:
    """The source that a config describes; no row is read before it is asked for."""
    return _SOURCES[config.type](config, seed)


_BY_ENDING: Mapping[str, Callable[[FileSourceConfig], DemonstrationSource]] = {
    ".parquet": ParquetTable,
    ".csv": CommaSeparated,
}


def _file(config: FileSourceConfig) -> DemonstrationSource:
    """By the ending of the file's name; whatever is not listed holds JSON lines."""
    path = Path(config.path).expanduser()
    try:
        path.open("rb").close()
    except OSError as error:
        raise _unreadable(path, error) from None
    return _BY_ENDING.get(path.suffix.lower(), JsonLines)(config)


def fingerprint(config: SourceConfig) -> str | None:
    """A hash of the local bytes behind a source, or None where its config alone says what it holds."""
    if isinstance(config, LabSourceConfig):
        return None
    if isinstance(config, FileSourceConfig):
        path = Path(config.path).expanduser()
        try:
            return of_file(path)
        except OSError as error:
            raise _unreadable(path, error) from None
    folder = Path(config.name).expanduser()
    return of_folder(folder) if folder.is_dir() else None


def _unreadable(path: Path, error: OSError) -> UsageError:
    return UsageError(
        f"cannot read the demonstrations {path}: {error.strerror}. "
        "Give a JSONL, Parquet or CSV file: --set subsample.source.path=FILE"
    )


def _numbered_lines(stream: BufferedReader, name: str) -> Iterator[tuple[int, bytes, bool]]:
    """(number, line, whether it is whole) of every line that is not blank; no line is held beyond a fixed length."""
    number = 0
    try:
        while line := stream.readline(_LONGEST_LINE):
            number += 1
            whole = len(line) < _LONGEST_LINE or line.endswith(b"\n")
            rest = line
            while not whole and rest and not rest.endswith(b"\n"):
                rest = stream.readline(_LONGEST_LINE)
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, line, whole
    except OSError as error:
        raise DensePathError(f"reading {name} stopped after line {number}: {error.strerror}") from error


def _parsed(line: bytes, whole: bool, first: bool, name: str) -> object:
    if not whole:
        raise Unusable(f"a line of more than {_LONGEST_LINE} bytes")
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise Unusable("not UTF-8") from None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        readable, value = False, None
    else:
        readable = True
    list_of_rows = isinstance(value, list) and any(isinstance(item, dict) for item in value)
    if first and text.lstrip().startswith("[") and (list_of_rows or not readable):
        raise UsageError(
            f"{name} holds one JSON list, but one JSON object a line (JSONL) is needed. "
            f"Convert it, for example with: jq -c '.[]' '{name}' > rows.jsonl"
        )
    if not readable:
        raise Unusable("not JSON")
    return value
