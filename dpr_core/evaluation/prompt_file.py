"""A local JSONL file of single-turn prompts."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from dpr_core.config.evaluation import FileBenchmarkConfig
from dpr_core.errors import UsageError
from dpr_core.evaluation.questions import Question
from dpr_core.hashing import of_file

T = TypeVar("T")

_STATED = re.compile(r"answer is:?[ \t]*(.*)", re.IGNORECASE)


def load(config: FileBenchmarkConfig) -> list[Question]:
    """Read every row, or say which line is wrong. Rows without an `id` are named by their line number."""
    questions: list[Question] = []
    first_line: dict[str, int] = {}
    content = _readable(config.path, Path.read_bytes).removeprefix(b"\xef\xbb\xbf")
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{config.path}, line {number}"
        question = _question(_row(line, where), number, where)
        if question.id in first_line:
            raise UsageError(
                f"{where}: the id {question.id!r} was already used in line {first_line[question.id]}; "
                "give every row an id of its own"
            )
        first_line[question.id] = number
        questions.append(question)
    if not questions:
        raise UsageError(f"{config.path}: the benchmark file has no rows; write one JSON object with a `prompt` a line")
    return questions


def pinned(config: FileBenchmarkConfig) -> FileBenchmarkConfig:
    """The benchmark together with the hash of its file as it is now."""
    return config.model_copy(update={"content": _readable(config.path, of_file)})


def read_result(text: str) -> str | None:
    """What follows the last "answer is", or else the last line that is not empty; without a final full stop."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    stated = [found.group(1) for line in lines if (found := _STATED.search(line))]
    result = (stated or lines)[-1].strip().removesuffix(".").strip()
    return result or None


def _readable(path: str, read: Callable[[Path], T]) -> T:
    try:
        return read(Path(path).expanduser())
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such benchmark file; check `path` of the benchmark") from None
    except OSError as error:
        raise UsageError(f"{path}: the benchmark file cannot be read: {error.strerror}") from None


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8") from None
    except (ValueError, RecursionError):
        raise UsageError(f"{where}: not valid JSON; one JSON object a line is expected") from None
    if not isinstance(row, dict):
        raise UsageError(f"{where}: a JSON object is expected, not {type(row).__name__}")
    return row


def _question(row: dict[str, Any], number: int, where: str) -> Question:
    prompt = _text(row.get("prompt"), "prompt", where)
    if not prompt.strip():
        raise UsageError(f"{where}: the row has no `prompt`, or an empty one; give it some text")
    reference = row.get("reference")
    return Question(
        id=_text(row.get("id", number), "id", where, numbers=True) or str(number),
        turns=(prompt,),
        system=_text(row.get("system"), "system", where),
        reference=None if reference is None else _text(reference, "reference", where, numbers=True).strip(),
    )


def _text(value: Any, field: str, where: str, *, numbers: bool = False) -> str:
    if value is None:
        return ""
    if numbers and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise UsageError(f"{where}: `{field}` must be text, not {type(value).__name__}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{where}: `{field}` holds half of a surrogate pair, which is no character") from None
    return value
