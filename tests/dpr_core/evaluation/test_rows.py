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
        ("\n", "holds no rows"),
    ],
)
def test_a_broken_file_is_refused_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=expected):
        read_rows(path)


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
