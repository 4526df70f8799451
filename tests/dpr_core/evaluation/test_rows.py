import math
import os
from pathlib import Path

import pytest

from dpr_core.errors import UsageError
from dpr_core.evaluation.rows import check, read_rows


def test_lists_and_lines_are_both_read(tmp_path: Path) -> None:
    lines, whole = tmp_path / "a.jsonl", tmp_path / "a.json"
    lines.write_text('{"a": 1}\n\n{"a": "x\u2028y"}\n', encoding="utf-8")
    whole.write_text('\ufeff [{"a": 1}, {"a": 2}]', encoding="utf-8")
    assert read_rows(lines) == [{"a": 1}, {"a": "x\u2028y"}]
    assert read_rows(whole) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}\n{"a": \n', "line 2: not valid JSON"),
        ('[{"a": 1},', "not valid JSON: line 1"),
        ('{"a": 1}\n[1]', "line 2: a JSON object is expected, not list"),
        ('[{"a": 1}, 2]', "row 2: a JSON object is expected, not int"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a": 1}\n{"a": 1, "a": 2}', "line 2: the key 'a' stands twice in one object; keep the one that is meant"),
        ('[{"a": {"b": 1, "b": 2}}]', "the key 'b' stands twice"),
        ("\n", "holds no rows"),
    ],
)
def test_a_broken_file_is_refused_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=expected):
        read_rows(path)


def test_a_score_that_official_tools_write_as_nan_is_read(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    for text in ('[{"preference": NaN}]', '{"preference": NaN}\n'):
        path.write_text(text)
        (row,) = read_rows(path)
        assert math.isnan(row["preference"])


@pytest.mark.usefixtures("hang_limit")
def test_what_is_no_file_and_what_is_too_large_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(UsageError, match=r"is a (named pipe|device|folder), but a file is needed"):
            read_rows(path)
    with (tmp_path / "large.jsonl").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UsageError, match=r"large\.jsonl has 1,099,511,627,776 bytes; .* read up to 1 GiB"):
        read_rows(tmp_path / "large.jsonl")


def test_what_is_no_text_or_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UsageError, match="not UTF-8"):
        read_rows(path)
    with pytest.raises(UsageError, match="cannot read"):
        read_rows(tmp_path / "none.jsonl")


@pytest.mark.parametrize("value", [None, 1, True, ["m"]])
def test_a_field_of_another_kind_is_refused_with_its_row(value: object) -> None:
    check([{"model": "m"}, {}], "judgments", model=str)
    with pytest.raises(UsageError, match=f"not judgments: `model` of row 2 is {type(value).__name__}"):
        check([{"model": "m"}, {"model": value}], "judgments", model=str)
