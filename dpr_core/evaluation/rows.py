"""Strict readers of JSON and JSONL rows: a refusal names the file, the line and the field."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from dpr_core.errors import UsageError
from dpr_core.files import DuplicateKeyError, also_sought, data_file, parse_json
from dpr_core.hashing import read_pinned

Row = dict[str, Any]
T = TypeVar("T")

MAX_FILE_BYTES = 2**30
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_rows(path: Path, pinned: str | None = None) -> list[Row]:
    """The objects of a JSON list or of a JSONL file, whichever it is; its content must have the pinned hash.

    NaN may stand in them: official tools write it where there is no score.
    """
    try:
        refuse_large(path)
        content = read_pinned(path, pinned).removeprefix(BYTE_ORDER_MARK)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    if content.lstrip().startswith(b"["):
        listed = enumerate(_parsed(_decoded(content, str(path)), str(path), constants=True), start=1)
        rows = [_object(row, f"{path}: row {number}") for number, row in listed]
    else:
        _refuse_document(content, path)
        rows = [row for _, row in jsonl_rows(content, str(path), constants=True)]
    if not rows:
        raise UsageError(f"{path} holds no rows")
    return rows


def _refuse_document(content: bytes, path: Path) -> None:
    """UsageError for one JSON object over several lines, which is another layout than rows, and valid JSON."""
    first = content.lstrip().partition(b"\n")[0].rstrip()
    if first.startswith(b"{") and not first.endswith(b"}"):
        try:
            whole = parse_json(content.decode(), constants=True)
        except (ValueError, RecursionError):
            return
        fields = ", ".join(sorted(map(str, whole))[:8])
        raise UsageError(f"{path} holds one JSON object ({fields}), not rows: a list, or an object a line, is expected")


def refuse_large(path: Path) -> None:
    """UsageError for a file that is no set of questions, answers or judgments, all of which are read whole."""
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise UsageError(f"{path} has {size:,} bytes; files of questions, answers and judgments are read up to 1 GiB")


def jsonl_rows(content: bytes, path: str, constants: bool = False) -> Iterator[tuple[int, Row]]:
    """The objects of a JSONL file, each with the number of its line. `constants` lets NaN and Infinity pass."""
    # Not str.splitlines(): JSON strings may hold U+2028 and its like as they are.
    for number, line in enumerate(content.removeprefix(BYTE_ORDER_MARK).splitlines(), start=1):
        where = f"{path}, line {number}"
        text = _decoded(line, where)
        if text.strip():
            yield number, _object(_parsed(text, where, "; one JSON object a line is expected", constants), where)


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        unit = " of the line" if ", line " in where else ""
        raise UsageError(f"{where}: not UTF-8 (byte {error.start + 1}{unit}); save the file as UTF-8") from None


def _parsed(text: str, where: str, expected: str = "", constants: bool = False) -> Any:
    try:
        return parse_json(text, constants)
    except json.JSONDecodeError as error:
        line = "" if expected else f"line {error.lineno}: "
        raise UsageError(f"{where}: not valid JSON: {line}{error.msg}{expected}") from None
    except DuplicateKeyError as error:
        raise UsageError(f"{where}: {error}; keep the one that is meant") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not valid JSON: {error}{expected}") from None


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise UsageError(f"{where}: a JSON object is expected, not {type(row).__name__}")
    return row


def text_field(value: object, field: str, where: str, may_be_empty: bool = False) -> str:
    """A value that must be text, and text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise UsageError(f"{where}: `{field}` must be text, not {type(value).__name__}")
    if not may_be_empty and not value.strip():
        raise UsageError(f"{where}: `{field}` is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{where}: `{field}` holds half of a surrogate pair, which is no character") from None
    return value


def need(rows: Sequence[Row], fields: Sequence[str], what: str) -> None:
    """Refuse rows of another format, naming the first that differs."""
    for number, row in enumerate(rows, start=1):
        if missing := [name for name in fields if name not in row]:
            raise UsageError(
                f"these are not {what}: row {number} has no {missing[0]!r} (it has {', '.join(sorted(row)[:8])})"
            )


def check(rows: Sequence[Row], what: str, **kinds: type | tuple[type, ...]) -> None:
    """Refuse rows in which a field that is there holds something of another kind."""
    for number, row in enumerate(rows, start=1):
        for name, kind in kinds.items():
            if name in row and (not isinstance(row[name], kind) or isinstance(row[name], bool)):
                raise UsageError(f"these are not {what}: `{name}` of row {number} is {type(row[name]).__name__}")


def unique(rows: Sequence[Row], key: Callable[[Row], Any], what: str) -> dict[Any, Row]:
    """Rows by key; a key that stands twice is refused, since either row could be meant."""
    found: dict[Any, Row] = {}
    for row in rows:
        if key(row) in found:
            raise UsageError(f"{what} {key(row)} stands twice in its file; keep the row that is meant")
        found[key(row)] = row
    return found


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Every refusal inside names this file."""
    try:
        yield
    except UsageError as error:
        raise UsageError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def of_benchmark_file(path: str, read: Callable[[Path], T]) -> T:
    """What `read` makes of a benchmark's file; UsageError where it is absent or cannot be read."""
    file = data_file(path)
    try:
        refuse_large(file)
        return read(file)
    except FileNotFoundError:
        raise UsageError(
            f"{path}: there is no such benchmark file{also_sought(path)}; check the benchmark's settings"
        ) from None
    except OSError as error:
        raise UsageError(f"{path}: the benchmark file cannot be read: {error.strerror}") from None
