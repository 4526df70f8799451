"""Rows of JSON and JSONL files that somebody else wrote."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dpr_core.errors import UsageError

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """The objects of a JSON list or of a JSONL file, whichever it is."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start})") from None
    rows = _as_list(text, path) if text.lstrip().startswith("[") else _as_lines(text, path)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise UsageError(f"{path}: row {number} is {type(row).__name__}, not a JSON object")
    if not rows:
        raise UsageError(f"{path} holds no rows")
    return rows


def _as_list(text: str, path: Path) -> list[Any]:
    try:
        rows: list[Any] = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path}: not valid JSON: line {error.lineno}: {error.msg}") from None
    return rows


def _as_lines(text: str, path: Path) -> list[Any]:
    rows = []
    # Not splitlines(): JSON strings may hold U+2028 and its like as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UsageError(f"{path}: line {number}: not valid JSON: {error.msg}") from None
    return rows


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


def shows(prompt: str, text: str) -> bool:
    """Whether a judge who read this prompt read this text.

    The official templates give every text lines of its own, so there the beginning of a text is another text.
    """
    wanted = text.strip()
    start = prompt.find(wanted)
    if not wanted or "The Start of " not in prompt:
        return start >= 0
    while start >= 0:
        end = start + len(wanted)
        before, after = prompt[prompt.rfind("\n", 0, start) + 1 : start], prompt[end:].partition("\n")[0]
        if not before.strip() and not after.strip():
            return True
        start = prompt.find(wanted, start + 1)
    return False


def unique(rows: Sequence[Row], key: Callable[[Row], Any], what: str) -> dict[Any, Row]:
    """Rows by key; a key that stands twice is refused, since either row could be meant."""
    found: dict[Any, Row] = {}
    for row in rows:
        if key(row) in found:
            raise UsageError(f"{what} {key(row)} stands twice in its file; keep the row that is meant")
        found[key(row)] = row
    return found
