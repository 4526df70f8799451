"""Validation of rows: columns or a conversation to a demonstration, or a bad row with its reason."""

import itertools
from collections.abc import Container, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self

from dpr_core.config.data import ColumnsConfig
from dpr_core.errors import UsageError

MAX_RAW_CHARACTERS = 500
ROWS_TO_CHECK_COLUMNS = 1000
MAX_COLUMNS_LISTED = 20

MESSAGES = "messages"
"""What the column of conversations is called by most who have one."""

ROLES = ("user", "assistant")

Exchange = tuple[str, str]
"""What a user said, and what the assistant answered."""


@dataclass(frozen=True)
class Demonstration:
    id: str
    system: str
    prompt: str
    response: str
    answer: str = ""
    """The result that a right response states, where the source has a column of them."""
    history: tuple[Exchange, ...] = ()
    """What was said before the prompt."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The demonstration that JSON has of these values."""
        return cls(**{**values, "history": tuple(map(tuple, values.get("history", ())))})

    def as_dict(self) -> dict[str, Any]:
        """Without a history the values are those of before there could be one."""
        return {name: value for name, value in asdict(self).items() if name != "history" or value}

    @property
    def characters(self) -> int:
        return sum(map(len, (self.system, self.prompt, self.response, *itertools.chain(*self.history))))

    def turns(self) -> Iterator[tuple[tuple[Exchange, ...], str, str]]:
        """(what was said before, prompt, response) of every turn of the assistant."""
        for i, exchange in enumerate((*self.history, (self.prompt, self.response))):
            yield self.history[:i], *exchange


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
        said = self._conversation(row)
        return Demonstration(
            id=_identifier(row, columns.id) or GeneratedId(f"row-{number}"),
            system=said.system or _optional_text(row, columns.system),
            prompt=said.prompt,
            response=said.response,
            answer=_answer(row, columns.answer),
            history=said.history,
        )

    def _conversation(self, row: Mapping[str, object]) -> "_Conversation":
        columns = self._columns
        answered = columns.response is not None
        if columns.messages is not None and row.get(columns.messages) is not None:
            return _conversation(row[columns.messages], columns.messages, answered)
        prompt = _text(row, columns.prompt)
        return _Conversation("", (), prompt, _text(row, columns.response) if columns.response is not None else "")

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
        if not self._rows or self._columns.messages in self._found_columns:
            return
        for field in ("prompt", "response"):
            column = getattr(self._columns, field)
            if column is not None and column not in self._found_columns:
                names = list(self._found_columns)
                more = ", ..." if len(names) > MAX_COLUMNS_LISTED else ""
                setting = "messages" if MESSAGES in names else field
                raise UsageError(
                    f"{self._source}: none of the first {self._rows} rows has a column {column!r} for the {field}; "
                    f"columns there: {', '.join(names[:MAX_COLUMNS_LISTED])}{more}. "
                    f"Name the right one: --set subsample.source.columns.{setting}="
                    f"{MESSAGES if setting == MESSAGES else 'COLUMN'}"
                )


def unused_id(wanted: str, taken: Container[str]) -> str:
    """The id itself, or where that is taken with `-2`, `-3` and so on."""
    candidates = (f"{wanted}-{count}" for count in itertools.count(2))
    return wanted if wanted not in taken else next(id for id in candidates if id not in taken)


class _Conversation(NamedTuple):
    system: str
    history: tuple[Exchange, ...]
    prompt: str
    response: str


def _conversation(messages: object, column: str, answered: bool) -> _Conversation:
    """Up to the last answer; without it, where a prompt is wanted alone."""
    if not isinstance(messages, list):
        raise InvalidRowError(f"{column} is not a list")
    said = [_message(message, column) for message in messages]
    system = said.pop(0)[1] if said and said[0][0] == "system" else ""
    if any(role != ROLES[i % 2] for i, (role, _) in enumerate(said)):
        raise InvalidRowError(f"{column}: user and assistant do not take turns")
    texts = [text for _, text in said]
    if answered:
        texts = texts[: len(texts) // 2 * 2]
    elif texts:
        texts = [*texts[: (len(texts) - 1) // 2 * 2 + 1], ""]
    if not texts:
        raise InvalidRowError(f"{column} has no turn of the {'assistant' if answered else 'user'}")
    *history, (prompt, response) = zip(texts[::2], texts[1::2], strict=True)
    return _Conversation(system, tuple(history), prompt, response)


def _message(message: object, column: str) -> tuple[str, str]:
    if not isinstance(message, Mapping):
        raise InvalidRowError(f"{column}: a message is not an object of role and content")
    role = message.get("role")
    if role not in ("system", *ROLES):
        raise InvalidRowError(f"{column}: a role other than system, user and assistant")
    try:
        return str(role), _optional_text(message, "content") if role == "system" else _text(message, "content")
    except InvalidRowError as problem:
        raise InvalidRowError(f"{column}: {problem} in a message") from None


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
