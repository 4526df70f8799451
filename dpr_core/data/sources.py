"""Sources of demonstrations, read as streams: JSONL, Parquet and CSV files, Hugging Face datasets, and the lab."""

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from dpr_core.config.data import ColumnsConfig, FileSourceConfig, HubSourceConfig, LabSourceConfig, SourceConfig
from dpr_core.data.rows import BadRow, Demonstration, InvalidRowError, RowReader
from dpr_core.errors import DensePathError, UsageError
from dpr_core.files import (
    ConstantError,
    DuplicateKeyError,
    also_sought,
    data_file,
    expanded,
    parse_json,
    refuse_special,
)
from dpr_core.hashing import hash_file, hash_folder, open_pinned, refuse_changed
from dpr_core.lab import programs

ROWS_PER_BATCH = 1000
MAX_LINE_BYTES = 2**24
MAX_FIELD_BYTES = 2**24
BUFFER_BYTES = 2**20

NOT_UTF8, NOT_JSON = CUT_OFF = ("not UTF-8", "not JSON")
"""What is wrong with a line of JSONL, be it as a whole or because its end is missing."""

Rows = Iterator[tuple[str, Demonstration | BadRow]]
"""Each row with its place, such as `file.jsonl:3`. They end with an error where the source is not what was pinned."""


class DemonstrationSource(Protocol):
    """Rows in one pass, read as they are consumed."""

    name: str
    """The source in messages."""

    expected_rows: int | None
    """The number of rows, where that is known beforehand."""

    def rows(self) -> Rows: ...


def open_source(config: SourceConfig, seed: int) -> DemonstrationSource:
    """The source that a config describes; it reads no row before `rows` is iterated."""
    return _SOURCES[config.type](config, seed)


def fingerprint(config: SourceConfig) -> str | None:
    """A hash of the local files behind a source, or None where its config alone determines the rows."""
    if isinstance(config, LabSourceConfig):
        return None
    if isinstance(config, FileSourceConfig):
        try:
            return hash_file(data_file(config.path))
        except OSError as error:
            raise _unreadable(config.path, error) from None
    folder = expanded(config.name)
    return hash_folder(folder) if folder.is_dir() else None


class LabDemonstrations:
    """Synthetic demonstrations of the lab's task."""

    def __init__(self, config: LabSourceConfig, seed: int) -> None:
        self.name = "the lab"
        self.expected_rows: int | None = config.rows
        self._config = config
        self._seed = seed

    def rows(self) -> Rows:
        for number, (id, prompt, response) in enumerate(programs.demonstrations(self._config, self._seed), 1):
            yield f"lab:{number}", Demonstration(id, "", prompt, response)


class LocalFile:
    """A file, and which of its columns mean what."""

    expected_rows: int | None = None

    def __init__(self, config: FileSourceConfig) -> None:
        self.name = config.path
        self._path = data_file(config.path)
        self._columns = config.columns
        self._pinned = config.content


class JsonLinesFile(LocalFile):
    """A local file with one JSON object a line. Blank lines are skipped."""

    def rows(self) -> Rows:
        reader = RowReader(self._columns, self.name)
        with open_pinned(self._path, self._pinned) as stream:
            yield from json_lines(stream, self.name, reader)
        reader.finish()


class ParquetFile(LocalFile):
    """A local Parquet file, of which only the mapped columns are read."""

    def rows(self) -> Rows:
        import pyarrow as pa
        from pyarrow import parquet

        reader = RowReader(self._columns, self.name)
        number = 0
        refuse_special(self._path)
        try:
            # Without a buffer, whole columns of a row group are read at once, which may be the whole file.
            with (
                pa.OSFile(str(self._path)) as file,
                parquet.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False) as table,
            ):
                self.expected_rows = table.metadata.num_rows
                names = table.schema_arrow.names
                refuse_same_names(names, self.name)
                columns = _columns_to_read(names, self._columns)
                for batch in table.iter_batches(ROWS_PER_BATCH, columns=columns, use_threads=False):
                    for row in batch.to_pylist():
                        number += 1
                        yield _read_row(reader, row, f"{self.name}:{number}", number)
                # Parts of it were read in an order of its own, so that it is hashed now, through the same open file.
                file.seek(0)
                refuse_changed(self.name, self._pinned, hashlib.file_digest(file, "sha256").hexdigest())
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if number == 0 and not isinstance(error, OSError):
                raise UsageError(f"{self.name} cannot be read as Parquet: {_first_line(error)}") from error
            raise DensePathError(f"reading {self.name} stopped after row {number}: {_first_line(error)}") from error
        reader.finish()


class CsvFile(LocalFile):
    """A local CSV file with a header; quoted fields may span lines."""

    def rows(self) -> Rows:
        reader = RowReader(self._columns, self.name)
        for number, (line, row) in enumerate(_csv_rows(self._path, self._pinned, self.name), 1):
            yield _read_row(reader, row, f"{self.name}:{line}", number)
        reader.finish()


class HubDataset:
    """One split of a dataset on the Hugging Face hub, or of a local dataset folder. No code of a dataset is run."""

    expected_rows: int | None = None

    def __init__(self, config: HubSourceConfig) -> None:
        self.name = config.name
        self._config = config

    def rows(self) -> Rows:
        reader = RowReader(self._config.columns, self.name)
        for number, row in enumerate(self._raw_rows(), 1):
            yield _read_row(reader, row, f"{self.name}:{self._config.split}:{number}", number)
        if self._config.content is not None:
            # What was read of which file is not known here, so that the folder is hashed once more.
            refuse_changed(self.name, self._config.content, hash_folder(expanded(self.name)))
        reader.finish()

    def _raw_rows(self) -> Iterator[Any]:
        count = 0
        try:
            stream = self._open()
            split_info = (stream.info.splits or {}).get(self._config.split)
            self.expected_rows = (split_info.num_examples or None) if split_info else None
            for row in stream:
                count += 1
                yield row
        except DensePathError:
            raise
        except Exception as error:
            raise self._explained(error, count) from error

    def _open(self) -> Any:
        import datasets

        local = expanded(self.name)
        if local.is_file():
            raise UsageError(
                f"{self.name} is a file. For a JSONL, Parquet or CSV file: "
                f"--set subsample.source.type=file --set subsample.source.path={self.name}"
            )
        if self.name.startswith(("/", ".", "~")) and not local.is_dir():
            raise UsageError(
                f"there is no dataset folder {self.name}; name another: --set subsample.source.name=FOLDER"
            )
        builder = datasets.load_dataset_builder(
            str(local) if local.is_dir() else self.name, self._config.subset, revision=self._config.revision
        )
        if local.is_dir():
            _check_csv(builder.config, self._config.split)
        _bound_memory(builder.config)
        return builder.as_streaming_dataset(split=self._config.split)

    def _explained(self, error: Exception, count: int) -> DensePathError:
        from datasets.exceptions import DatasetNotFoundError

        detail = " ".join(str(error).split()).rstrip(".")
        if count:
            return DensePathError(f"reading the dataset {self.name} stopped after row {count}: {detail}")
        if isinstance(error, DatasetNotFoundError):
            return UsageError(
                f"there is no dataset {self.name} on the hub that can be read from here ({detail}). "
                "Check subsample.source.name and .revision; log in with `hf auth login` if it is private or gated"
            )
        if isinstance(error, ConnectionError):
            return DensePathError(
                f"the hub cannot be reached for the dataset {self.name} ({detail}). Check the network and "
                "HF_HUB_OFFLINE, or name a local folder that holds it: --set subsample.source.name=FOLDER"
            )
        if isinstance(error, ValueError | FileNotFoundError):
            return UsageError(
                f"the dataset {self.name} cannot be opened: {detail}. Check subsample.source.name, .revision and .split"
            )
        return DensePathError(f"the dataset {self.name} cannot be read: {type(error).__name__}: {detail}")


def _local_file(config: FileSourceConfig) -> DemonstrationSource:
    """The format by the file's suffix; every suffix that is not listed means JSON lines."""
    path = data_file(config.path)
    refuse_special(path)
    try:
        path.open("rb").close()
    except OSError as error:
        raise _unreadable(config.path, error) from None
    return _BY_SUFFIX.get(path.suffix.lower(), JsonLinesFile)(config)


_BY_SUFFIX: Mapping[str, Callable[[FileSourceConfig], DemonstrationSource]] = {".parquet": ParquetFile, ".csv": CsvFile}

_SOURCES: Mapping[str, Callable[[Any, int], DemonstrationSource]] = {
    "lab": LabDemonstrations,
    "file": lambda config, seed: _local_file(config),
    "hub": lambda config, seed: HubDataset(config),
}


def json_lines(stream: BinaryIO, name: str, reader: RowReader) -> Rows:
    """The rows of an open JSONL file, one for each line that is not blank; a last line that is cut off is an error."""
    first = True
    for number, line, complete in _numbered_lines(stream, name):
        where = f"{name}:{number}"
        try:
            row = reader.read(_parse_line(line, complete, first, name), number)
        except InvalidRowError as problem:
            if complete and not line.endswith(b"\n") and str(problem) in CUT_OFF:
                raise UsageError(
                    f"{where}: the last line is {problem} and has no line end, as if cut off; write the file whole"
                ) from None
            yield where, BadRow.of(where, str(problem), line.decode(errors="replace"))
        else:
            yield where, row
        first = False


def _numbered_lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, bytes, bool]]:
    """(number, line, whether it is complete) of every line that is not blank; longer lines are cut."""
    number = 0
    try:
        while line := stream.readline(MAX_LINE_BYTES):
            number += 1
            complete = len(line) < MAX_LINE_BYTES or line.endswith(b"\n")
            rest = line
            while not complete and rest and not rest.endswith(b"\n"):
                rest = stream.readline(MAX_LINE_BYTES)
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, line, complete
    except OSError as error:
        raise DensePathError(f"reading {name} stopped after line {number}: {error.strerror}") from error


def _parse_line(line: bytes, complete: bool, first: bool, name: str) -> object:
    if not complete:
        raise InvalidRowError(f"a line of more than {MAX_LINE_BYTES} bytes")
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise InvalidRowError(NOT_UTF8) from None
    try:
        value = parse_json(text)
    except DuplicateKeyError:
        raise InvalidRowError("a key stands twice") from None
    except ConstantError as error:
        raise InvalidRowError(str(error)) from None
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
        raise InvalidRowError(NOT_JSON)
    return value


def _csv_rows(path: Path, pinned: str | None, name: str) -> Iterator[tuple[int, dict[Any, Any]]]:
    """The rows of a CSV file, each with the line that it ends in. What leaves open where a row ends is an error."""
    csv.field_size_limit(MAX_FIELD_BYTES)
    number = begins = 0
    with open_pinned(path, pinned) as stream:
        # Bytes that are not UTF-8 become surrogates, which RowReader rejects as invalid Unicode.
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        table = csv.DictReader(_bounded_lines(text), strict=True)
        try:
            refuse_same_names([column for column in table.fieldnames or () if column], name)
            begins = table.line_num + 1
            for row in table:
                number += 1
                yield table.line_num, row
                begins = table.line_num + 1
        except OSError as error:
            raise DensePathError(f"reading {name} stopped after row {number}: {error.strerror}") from error
        except csv.Error as error:
            place = f"row {number + 1}, which begins in line {begins}" if begins else "the line of column names"
            raise DensePathError(
                f"reading {name} stopped at {place}: {error}; is a quote left open there? A quote inside a quoted "
                "value is written twice"
            ) from error


def _bounded_lines(text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(MAX_LINE_BYTES):
        if len(line) == MAX_LINE_BYTES and not line.endswith(("\n", "\r")):
            raise csv.Error(f"a line of more than {MAX_LINE_BYTES} characters")
        yield line


def _read_row(reader: RowReader, row: dict[Any, Any], where: str, number: int) -> tuple[str, Demonstration | BadRow]:
    try:
        if None in row:
            raise InvalidRowError("more values than columns")
        return where, reader.read(row, number)
    except InvalidRowError as problem:
        raw = {str(name): value for name, value in row.items()}
        return where, BadRow.of(where, str(problem), json.dumps(raw, ensure_ascii=False, default=str))


def refuse_same_names(names: Sequence[str], source: str) -> None:
    """UsageError for columns of one name: each of them could be meant."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UsageError(f"{source} has several columns called {twice[0]!r}; leave one of them, or rename the others")


def _columns_to_read(present: list[str], columns: ColumnsConfig) -> list[str] | None:
    """The mapped columns; None for all of them where a required one is missing, so that the error can list them."""
    if columns.messages not in present and (columns.prompt not in present or columns.response not in (None, *present)):
        return None
    mapped = dict.fromkeys(
        (columns.id, columns.system, columns.prompt, columns.response, columns.answer, columns.messages)
    )
    return [name for name in mapped if name in present]


def _check_csv(settings: Any, split: str) -> None:
    """Refuse the CSV files of a local folder whose rows pandas, which `datasets` has read them, would guess at."""
    from datasets.packaged_modules.csv.csv import CsvConfig

    files = (settings.data_files or {}).get(split, ()) if isinstance(settings, CsvConfig) else ()
    for file in map(Path, files):
        if file.suffix == ".csv":
            for line, row in _csv_rows(file, None, str(file)):
                if None in row:
                    raise UsageError(f"{file}:{line}: more values than columns")


def _bound_memory(settings: Any) -> None:
    """Read Parquet in small batches through a buffer: pyarrow's read-ahead keeps what it has read."""
    from datasets.packaged_modules.parquet.parquet import ParquetConfig
    from pyarrow.dataset import ParquetFragmentScanOptions

    if isinstance(settings, ParquetConfig):
        settings.batch_size = ROWS_PER_BATCH
        settings.fragment_scan_options = ParquetFragmentScanOptions(
            use_buffered_stream=True, buffer_size=BUFFER_BYTES, pre_buffer=False
        )


def _unreadable(name: str, error: OSError) -> UsageError:
    sought = also_sought(name) if isinstance(error, FileNotFoundError) else ""
    return UsageError(
        f"cannot read the demonstrations {expanded(name)}: {error.strerror}{sought}. "
        "Give a JSONL, Parquet or CSV file: --set subsample.source.path=FILE"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
