"""Validation of rows: columns to a demonstration, or a bad row with its reason."""

import itertools
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Self

from dpr_core.config.data import ColumnsConfig
from dpr_core.errors import UsageError

MAX_RAW_CHARACTERS = 500
ROWS_TO_CHECK_COLUMNS = 1000
MAX_COLUMNS_LISTED = 20


@dataclass(frozen=True)
class Demonstration:
    id: str
    system: str
    prompt: str
    response: str
    answer: str = ""
    """The result that a right response states, where the source has a column of them."""

    @property
    def characters(self) -> int:
        return len(self.system) + len(self.prompt) + len(self.response)


@dataclass(frozen=True)
class BadRow:
    """A quarantined row: its place, the reason (one of a few, so that they can be counted), how it starts."""

    where: str
    reason: str
    raw: str

    @classmethod
    def of(cls, where: str, reason: str, raw: str) -> Self:
        return cls(where, reason, raw[:MAX_RAW_CHARACTERS].encode(errors="backslashreplace").decode())


class GeneratedId(str):
    """The id of a row that has none: `row-` and its number. Another row may have that as its own."""


class InvalidRowError(ValueError):
    """The reason why a row is bad."""


class RowReader:
    """Maps the columns of one source to demonstrations."""

    def __init__(self, columns: ColumnsConfig, source: str) -> None:
        self._columns = columns
        self._source = source
        self._rows = 0
        self._found_columns: dict[str, None] = {}

    def read(self, row: object, number: int) -> Demonstration:
        """The demonstration of a row; InvalidRowError where it has none. `number` names it where it has no id."""
        if not isinstance(row, Mapping):
            raise InvalidRowError("not a JSON object")
        self._note_columns(row)
        columns = self._columns
        return Demonstration(
            id=_identifier(row, columns.id) or GeneratedId(f"row-{number}"),
            system=_optional_text(row, columns.system),
            prompt=_text(row, columns.prompt),
            response="" if columns.response is None else _text(row, columns.response),
            answer=_answer(row, columns.answer),
        )

    def finish(self) -> None:
        """Call at the end of the source: UsageError where no row has a required column."""
        if self._rows < ROWS_TO_CHECK_COLUMNS:
            self._require_columns()

    def _note_columns(self, row: Mapping[str, object]) -> None:
        if self._rows < ROWS_TO_CHECK_COLUMNS:
            self._found_columns |= dict.fromkeys(row)
            self._rows += 1
            if self._rows == ROWS_TO_CHECK_COLUMNS:
                self._require_columns()

    def _require_columns(self) -> None:
        if not self._rows:
            return
        for field in ("prompt", "response"):
            column = getattr(self._columns, field)
            if column is not None and column not in self._found_columns:
                names = list(self._found_columns)
                more = ", ..." if len(names) > MAX_COLUMNS_LISTED else ""
                raise UsageError(
                    f"{self._source}: none of the first {self._rows} rows has a column {column!r} for the {field}; "
                    f"columns there: {', '.join(names[:MAX_COLUMNS_LISTED])}{more}. "
                    f"Name the right one: --set subsample.source.columns.{field}=COLUMN"
                )


def unused_id(wanted: str, taken: Container[str]) -> str:
    """The id itself, or where that is taken with `-2`, `-3` and so on."""
    candidates = (f"{wanted}-{count}" for count in itertools.count(2))
    return wanted if wanted not in taken else next(id for id in candidates if id not in taken)


def _text(row: Mapping[str, object], column: str) -> str:
    value = row.get(column)
    if value is None:
        raise InvalidRowError(f"no {column}")
    if not isinstance(value, str):
        raise InvalidRowError(f"{column} is not text")
    if not value.strip():
        raise InvalidRowError(f"empty {column}")
    return _unicode(value, column)


def _optional_text(row: Mapping[str, object], column: str | None) -> str:
    value = None if column is None else row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidRowError(f"{column} is not text")
    return _unicode(value, str(column))


def _answer(row: Mapping[str, object], column: str | None) -> str:
    value = None if column is None else row.get(column)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return _optional_text(row, column).strip()


def _identifier(row: Mapping[str, object], column: str | None) -> str:
    value = None if column is None else row.get(column)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InvalidRowError(f"{column} is neither text nor a whole number")
    return _unicode(str(value), str(column)).strip()


def _unicode(value: str, column: str) -> str:
    """Reject lone surrogates, which JSON can spell and UTF-8 cannot encode."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRowError(f"{column} is not valid Unicode") from None
    return value
