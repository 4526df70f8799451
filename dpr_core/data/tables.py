"""Local tables of demonstrations, Parquet and CSV, read as a stream: no more than some rows are held at once."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpr_core.config.data import ColumnsConfig, FileSourceConfig
from dpr_core.data.rows import BadRow, Demonstration, RowReader, Unusable
from dpr_core.errors import DensePathError, UsageError

_ROWS_AT_ONCE = 1000
_LONGEST_FIELD = 2**24


class LocalFile:
    """A file, and which of its columns mean what."""

    expected_rows: int | None = None

    def __init__(self, config: FileSourceConfig) -> None:
        self.name = config.path
        self._path = Path(config.path).expanduser()
        self._columns = config.columns


class ParquetTable(LocalFile):
    """One Parquet file, of which only the columns that are asked for are read."""

    def rows(self) -> Iterator[tuple[str, Demonstration | BadRow]]:
        import pyarrow as pa
        from pyarrow import parquet

        reader = RowReader(self._columns, self.name)
        number = 0
        try:
            # Without a buffer, whole columns of a row group are read at once, which may be the whole file.
            with parquet.ParquetFile(self._path, buffer_size=2**20, pre_buffer=False) as table:
                self.expected_rows = table.metadata.num_rows
                columns = _columns_to_read(table.schema_arrow.names, self._columns)
                for batch in table.iter_batches(_ROWS_AT_ONCE, columns=columns, use_threads=False):
                    for row in batch.to_pylist():
                        number += 1
                        yield _read(reader, row, f"{self.name}:{number}", number)
        except pa.ArrowInvalid as error:
            if number == 0:
                raise UsageError(f"{self.name} cannot be read as Parquet: {_first_line(error)}") from error
            raise DensePathError(f"reading {self.name} stopped after row {number}: {_first_line(error)}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise DensePathError(f"reading {self.name} stopped after row {number}: {_first_line(error)}") from error
        reader.finish()


class CommaSeparated(LocalFile):
    """One CSV file with a line of column names; texts may span lines, in double quotes."""

    def rows(self) -> Iterator[tuple[str, Demonstration | BadRow]]:
        csv.field_size_limit(_LONGEST_FIELD)
        reader = RowReader(self._columns, self.name)
        # What is not UTF-8 becomes surrogates, with which a row is set aside as no Unicode.
        with self._path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            table = csv.DictReader(stream)
            try:
                for number, row in enumerate(table, 1):
                    yield _read(reader, row, f"{self.name}:{table.line_num}", number)
            except (csv.Error, OSError) as error:
                where = f"{self.name} stopped at line {table.line_num}"
                raise DensePathError(f"reading {where}: {error}; is a quote left open?") from error
        reader.finish()


def _read(reader: RowReader, row: dict[Any, Any], where: str, number: int) -> tuple[str, Demonstration | BadRow]:
    try:
        if None in row:
            raise Unusable("more values than columns")
        return where, reader.read(row, fallback_id=f"row-{number}")
    except Unusable as problem:
        raw = {str(name): value for name, value in row.items()}
        return where, BadRow.of(where, str(problem), json.dumps(raw, ensure_ascii=False, default=str))


def _columns_to_read(present: list[str], columns: ColumnsConfig) -> list[str] | None:
    """Those of the mapping; all of them where one that is needed is not there, for the message that will follow."""
    if columns.prompt not in present or columns.response not in present:
        return None
    asked = dict.fromkeys((columns.id, columns.system, columns.prompt, columns.response))
    return [name for name in asked if name in present]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
