"""One row of a source: a demonstration, or what is wrong with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from dpr_core.config.data import ColumnsConfig
from dpr_core.errors import UsageError

_RAW_CHARACTERS = 500
_ROWS_BEFORE_COLUMNS_ARE_CHECKED = 1000
_COLUMNS_TO_NAME = 20


@dataclass(frozen=True)
class Demonstration:
    id: str
    system: str
    prompt: str
    response: str

    @property
    def characters(self) -> int:
        return len(self.system) + len(self.prompt) + len(self.response)


@dataclass(frozen=True)
class BadRow:
    """A row that was set aside: its place, the reason (one of a few, so that they can be counted), how it starts."""

    where: str
    reason: str
    raw: str

    @classmethod
    def of(cls, where: str, reason: str, raw: str) -> Self:
        return cls(where, reason, raw[:_RAW_CHARACTERS].encode(errors="backslashreplace").decode())


class Unusable(ValueError):
    """Why a row is bad."""


class RowReader:
    """Turns the mappings of one source into demonstrations by way of its columns."""

    def __init__(self, columns: ColumnsConfig, source: str) -> None:
        self._columns = columns
        self._source = source
        self._rows = 0
        self._seen: dict[str, None] = {}

    def read(self, row: object, fallback_id: str) -> Demonstration:
        """The row's demonstration, or Unusable."""
        if not isinstance(row, Mapping):
            raise Unusable("not a JSON object")
        self._look_at(row)
        columns = self._columns
        return Demonstration(
            id=_identifier(row, columns.id) or fallback_id,
            system=_optional_text(row, columns.system),
            prompt=_text(row, columns.prompt),
            response=_text(row, columns.response),
        )

    def finish(self) -> None:
        """Call at the end of the source: a column that no row has is a wrong request, not so many bad rows."""
        if self._rows < _ROWS_BEFORE_COLUMNS_ARE_CHECKED:
            self._require_columns()

    def _look_at(self, row: Mapping[str, object]) -> None:
        if self._rows < _ROWS_BEFORE_COLUMNS_ARE_CHECKED:
            self._seen |= dict.fromkeys(row)
            self._rows += 1
            if self._rows == _ROWS_BEFORE_COLUMNS_ARE_CHECKED:
                self._require_columns()

    def _require_columns(self) -> None:
        if not self._rows:
            return
        for field in ("prompt", "response"):
            column = getattr(self._columns, field)
            if column not in self._seen:
                names = list(self._seen)
                more = ", ..." if len(names) > _COLUMNS_TO_NAME else ""
                raise UsageError(
                    f"{self._source}: none of the first {self._rows} rows has a column {column!r} for the {field}; "
                    f"columns there: {', '.join(names[:_COLUMNS_TO_NAME])}{more}. "
                    f"Name the right one: --set subsample.source.columns.{field}=COLUMN"
                )


def _text(row: Mapping[str, object], column: str) -> str:
    value = row.get(column)
    if value is None:
        raise Unusable(f"no {column}")
    if not isinstance(value, str):
        raise Unusable(f"{column} is not text")
    if not value.strip():
        raise Unusable(f"empty {column}")
    return _unicode(value, column)


def _optional_text(row: Mapping[str, object], column: str | None) -> str:
    value = None if column is None else row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Unusable(f"{column} is not text")
    return _unicode(value, str(column))


def _identifier(row: Mapping[str, object], column: str | None) -> str:
    value = None if column is None else row.get(column)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Unusable(f"{column} is neither text nor a whole number")
    return _unicode(str(value), str(column)).strip()


def _unicode(value: str, column: str) -> str:
    """JSON can spell half of a surrogate pair, which no encoding can write again."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unusable(f"{column} is not valid Unicode") from None
    return value
