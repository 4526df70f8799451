"""Parquet and CSV files: the same rows as from JSONL, read as a stream."""

import json

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from dpr_core.config.data import ColumnsConfig, FileSourceConfig, SubsampleConfig
from dpr_core.data import sources
from dpr_core.data.rows import Demonstration
from dpr_core.data.sources import open_source
from dpr_core.data.subsample import subsample
from dpr_core.errors import DensePathError, UsageError

ROWS = [
    {
        "id": f"id-{i}",
        "system_prompt": "s" * (i % 2),
        "question": f"q{i},\n\u201cé\u201d",
        "response": f'r"{i}"',
        "x": "y",
    }
    for i in range(50)
]


def rows_of(path, **columns):
    source = open_source(FileSourceConfig(path=str(path), columns=ColumnsConfig(**columns)), seed=0)
    return list(source.rows())


def test_the_same_rows_give_the_same_sample_from_every_kind_of_file(tmp_path):
    frame = pd.DataFrame(ROWS)
    frame.to_parquet(tmp_path / "rows.parquet", row_group_size=7)
    frame.to_csv(tmp_path / "rows.CSV", index=False)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    samples = {
        subsample(SubsampleConfig(source=FileSourceConfig(path=str(tmp_path / name)), size=10)).content_hash
        for name in ("rows.parquet", "rows.CSV", "rows.jsonl")
    }
    assert len(samples) == 1
    assert [row for _, row in rows_of(tmp_path / "rows.parquet")] == [
        Demonstration(row["id"], row["system_prompt"], row["question"], row["response"]) for row in ROWS
    ]


def test_columns_by_mapping_rows_without_an_id_and_bad_rows_of_parquet(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "ROWS_PER_BATCH", 2)
    path = tmp_path / "rows.parquet"
    frame = pd.DataFrame({"in": ["a", "", "c"], "out": ["1", "2", None], "unread": [[1], [2], [3]]})
    frame.to_parquet(path)
    (first, one), (_, two), (last, three) = rows_of(path, id=None, prompt="in", response="out")
    assert (first, one) == (f"{path}:1", Demonstration("row-1", "", "a", "1"))
    assert (two.reason, three.reason, last) == ("empty in", "no out", f"{path}:3")
    assert json.loads(two.raw) == {"in": "", "out": "2"}


def test_only_the_columns_that_are_asked_for_are_read():
    assert sources._columns_to_read(["response", "x", "question"], ColumnsConfig()) == ["question", "response"]
    assert sources._columns_to_read(["id", "x", "question"], ColumnsConfig()) is None


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_a_column_that_is_not_there_names_those_that_are(tmp_path, ending):
    path = tmp_path / f"rows.{ending}"
    frame = pd.DataFrame({"instruction": ["q"], "output": ["r"]})
    frame.to_parquet(path) if ending == "parquet" else frame.to_csv(path, index=False)
    with pytest.raises(UsageError, match="has a column 'question' for the prompt; columns there: instruction, output"):
        rows_of(path)


def test_parquet_says_how_many_rows_there_will_be(tmp_path):
    pd.DataFrame(ROWS).to_parquet(tmp_path / "rows.parquet")
    source = open_source(FileSourceConfig(path=str(tmp_path / "rows.parquet")), seed=0)
    next(iter(source.rows()))
    assert source.expected_rows == 50


def test_what_is_no_parquet_and_parquet_that_is_damaged(tmp_path):
    path = tmp_path / "rows.parquet"
    path.write_bytes(b'{"question": "q", "response": "r"}\n')
    with pytest.raises(UsageError, match=r"rows\.parquet cannot be read as Parquet"):
        rows_of(path)
    table = pa.Table.from_pylist(ROWS)
    parquet.write_table(table, path, row_group_size=10, compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = b"\xff" * 400
    path.write_bytes(content)
    with pytest.raises(DensePathError, match=r"rows\.parquet"):
        rows_of(path)


def test_csv_rows_that_are_set_aside(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(
        b'\xef\xbb\xbfid,question,response\r\n1,q,r\r\n2,q\r\n3,q,r,more\r\n4,\xff,r\r\n\r\n,"two\r\nlines",r'
    )
    found = rows_of(path)
    assert [row.reason if hasattr(row, "reason") else row.id for _, row in found] == [
        "1", "no response", "more values than columns", "question is not valid Unicode", "row-5",
    ]  # fmt: skip
    assert found[-1][1].prompt == "two\r\nlines"
    assert [where for where, _ in found] == [f"{path}:{line}" for line in (2, 3, 4, 5, 8)]


def csv_of(path, rows):
    path.write_text("".join(f"{line}\n" for line in ["id,question,response", *rows]))
    return path


@pytest.mark.parametrize(
    ("answer", "after"),
    [
        ('"He said yes.', "r"),
        ('"He said yes.', '"r"'),
        ('"He said "yes".', "r"),
        ('"He said" yes.', "r"),
    ],
)
def test_a_quote_that_is_left_open_names_its_row_and_swallows_none(tmp_path, answer, after):
    rows = [f"{n},q{n},{after}" for n in range(1, 1001)]
    rows[900] = f"901,q901,{answer}"
    found = open_source(FileSourceConfig(path=str(csv_of(tmp_path / "rows.csv", rows))), seed=0).rows()
    assert [next(found)[1].id for _ in range(900)] == [str(n) for n in range(1, 901)]
    with pytest.raises(DensePathError, match=r"stopped at row 901, which begins in line 902: .*quote left open there"):
        next(found)


def test_a_quote_that_is_left_open_is_told_before_memory_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_FIELD_BYTES", 100)
    path = tmp_path / "rows.csv"
    path.write_text('question,response\nq,"' + "r\n" * 200)
    with pytest.raises(DensePathError, match=r"stopped at row 1, which begins in line 2: .*quote left open"):
        rows_of(path)
    path.write_text('question,"response\nq,r\n')
    with pytest.raises(DensePathError, match=r"stopped at the line of column names: .*quote left open"):
        rows_of(path)


def test_a_csv_line_without_end_is_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_LINE_BYTES", 100)
    path = csv_of(tmp_path / "rows.csv", ["1,q,r", "2,q," + "r," * 200])
    with pytest.raises(DensePathError, match="stopped at row 2, which begins in line 3: a line of more than 100 char"):
        rows_of(path)


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_columns_of_one_name_are_refused(tmp_path, ending):
    path = tmp_path / f"rows.{ending}"
    names, row = ["question", "response", "question"], ["first", "r", "second"]
    if ending == "parquet":
        parquet.write_table(pa.table([[value] for value in row], names=names), path)
    else:
        path.write_text(f"{','.join(names)}\n{','.join(row)}\n")
    with pytest.raises(UsageError, match=r"rows\..* has several columns called 'question'; leave one of them"):
        rows_of(path)


def test_columns_without_a_name_may_be_several(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("question,response,,\nq,r,,\n")
    assert [row for _, row in rows_of(path)] == [Demonstration("row-1", "", "q", "r")]


def test_nested_columns_of_parquet_are_no_text(tmp_path):
    path = tmp_path / "rows.parquet"
    rows = [
        {"question": {"text": "q"}, "response": ["r"]},
        {"question": {"text": "q"}, "response": ["r", "s"]},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), path)
    assert [row.reason for _, row in rows_of(path)] == ["question is not text"] * 2


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_a_file_that_is_not_there(tmp_path, ending):
    with pytest.raises(UsageError, match="No such file or directory. Give a JSONL, Parquet or CSV file"):
        rows_of(tmp_path / f"none.{ending}")
