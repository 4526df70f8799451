"""Rows of a gold measure: JSONL, JSON, Parquet or CSV, each a prompt with what a right answer is known by."""

import csv
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dpr_core.config.gold import GoldBenchmarkConfig
from dpr_core.errors import UsageError
from dpr_core.evaluation import hosted
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.rows import Row, naming, read_rows, refuse_large, text_field, unique
from dpr_core.hashing import read_pinned

OTHER_NAMES = {"question": "prompt", "answer": "reference"}
"""Columns that take the place of those of the default names where these are not there."""

MOST_LISTED = 12


@dataclass(frozen=True)
class GoldRow:
    """A prompt, and what is known of right answers to it; empty where the row does not say."""

    id: str
    system: str
    prompt: str
    response: str
    answer: str
    references: tuple[str, ...]
    where: str

    def question(self, reference: str | None = None, references: Sequence[str] = ()) -> Question:
        return Question(self.id, (self.prompt,), self.system, reference, tuple(references))


def load(config: GoldBenchmarkConfig) -> list[GoldRow]:
    """The rows that are asked."""
    return selected(every(config), config)


def every(config: GoldBenchmarkConfig) -> list[GoldRow]:
    """All rows of the file."""
    path = hosted.local_file(config)
    with naming(path):
        rows = [
            _gold_row(row, f"{path}: row {number}", str(number), config)
            for number, row in enumerate(_read(path, config.content), start=1)
        ]
        unique([{"id": row.id} for row in rows], lambda row: row["id"], "row")
    if not rows:
        raise UsageError(f"{path} holds no rows")
    return rows


Asked = TypeVar("Asked", GoldRow, Question)


def selected(rows: list[Asked], config: GoldBenchmarkConfig) -> list[Asked]:
    """Those that `skip` and `prompts` leave, in the order of the hashes of their ids where these leave any out."""
    if config.prompts is None and not config.skip:
        return rows
    ranked = sorted(rows, key=lambda row: hashlib.sha256(row.id.encode()).digest())
    kept = ranked[config.skip :][: config.prompts]
    wanted = config.skip + (config.prompts or 1)
    if len(rows) < wanted:
        raise UsageError(
            f"{config.path or config.repository} has {len(rows)} prompts, fewer than skip and prompts ask for "
            f"({wanted}); ask for fewer"
        )
    return kept


def _read(path: Path, pinned: str | None) -> Iterable[Row]:
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        return read_rows(path, pinned)
    try:
        refuse_large(path)
        content = read_pinned(path, pinned)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    return _of_parquet(content) if suffix == ".parquet" else _of_csv(content)


def _of_parquet(content: bytes) -> list[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        rows: list[Row] = parquet.read_table(io.BytesIO(content)).to_pylist()
    except pa.ArrowException as error:
        raise UsageError(f"not readable as Parquet: {' '.join(str(error).split())[:200]}") from None
    return rows


def _of_csv(content: bytes) -> list[Row]:
    try:
        table = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        rows = list(table)
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from None
    except csv.Error as error:
        raise UsageError(f"not readable as CSV: {error}; is a quote left open?") from None
    if uneven := next((number for number, row in enumerate(rows, start=1) if None in row), None):
        raise UsageError(f"row {uneven} has more values than columns")
    return rows


def _gold_row(row: Row, where: str, number: str, config: GoldBenchmarkConfig) -> GoldRow:
    columns = config.columns

    def cell(column: str | None) -> Any:
        if column is None:
            return None
        value = row.get(column)
        return row.get(OTHER_NAMES.get(column, "")) if value is None else value

    def text(column: str | None) -> str:
        found = cell(column)
        if found is None:
            return ""
        if isinstance(found, int | float) and not isinstance(found, bool):
            return str(found)
        return text_field(found, str(column), where, may_be_empty=True)

    prompt = text(columns.prompt)
    if not prompt.strip():
        listed = ", ".join(list(map(str, row))[:MOST_LISTED])
        raise UsageError(
            f"{where} has no {columns.prompt!r} (it has {listed}); name the column of the prompts: columns.prompt"
        )
    references = cell(columns.references) or ()
    if isinstance(references, str) or not isinstance(references, Sequence):
        raise UsageError(f"{where}: `{columns.references}` must be a list of texts")
    return GoldRow(
        id=text(columns.id).strip() or number,
        system=text(columns.system),
        prompt=prompt,
        response=text(columns.response),
        answer=text(columns.answer).strip(),
        references=tuple(text_field(each, columns.references, where) for each in references),
        where=where,
    )
