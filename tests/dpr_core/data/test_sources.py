import json
import os
import socket

import pytest

from dpr_core.config.data import AdditionsConfig, ColumnsConfig, FileSourceConfig, HubSourceConfig, LabSourceConfig
from dpr_core.data import sources
from dpr_core.data.rows import BadRow, Demonstration
from dpr_core.data.sources import fingerprint, open_source
from dpr_core.errors import UsageError


def rows_of(path, **columns):
    """What a JSONL file yields, without the places."""
    return [
        row for _, row in open_source(FileSourceConfig(path=str(path), columns=ColumnsConfig(**columns)), seed=0).rows()
    ]


def file_of(folder, *lines: bytes | dict):
    path = folder / "rows.jsonl"
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return path


GOOD = {"id": "g", "question": "q", "response": "r"}


def test_a_row_with_all_columns(tmp_path):
    path = file_of(tmp_path, {"id": "a", "system_prompt": "s", "question": " q ", "response": "r\n"})
    assert rows_of(path) == [Demonstration("a", "s", " q ", "r\n")]


def test_a_missing_system_prompt_is_empty_and_a_missing_id_is_the_line_number(tmp_path):
    path = file_of(tmp_path, {"question": "q", "response": "r"}, b"", {**GOOD, "id": " ", "system_prompt": None})
    assert rows_of(path) == [Demonstration("row-1", "", "q", "r"), Demonstration("row-3", "", "q", "r")]


def test_a_whole_number_is_an_id(tmp_path):
    assert rows_of(file_of(tmp_path, {**GOOD, "id": 7})) == [Demonstration("7", "", "q", "r")]


def test_columns_can_be_left_out(tmp_path):
    path = file_of(tmp_path, {"id": [1], "system_prompt": 3, "in": "q", "out": "r"})
    columns = {"id": None, "system": None, "prompt": "in", "response": "out"}
    assert rows_of(path, **columns) == [Demonstration("row-1", "", "q", "r")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"id": "x", "question": "q"', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"9" * 10_000, "not JSON"),
        (b'{"question": "\xff", "response": "r"}', "not UTF-8"),
        (b'"text"', "not a JSON object"),
        (b"[1, 2]", "not a JSON object"),
        (b'{"question": "q", "response": "r", "question": "another"}', "a key stands twice"),
        (b'{"question": "q", "response": "r", "more": {"a": 1, "a": 2}}', "a key stands twice"),
        (b'{"question": "q", "response": "r", "score": NaN}', "NaN is no number of JSON"),
        (b'{"question": "q", "response": "r", "score": -Infinity}', "-Infinity is no number of JSON"),
        (b'\xef\xbb\xbf{"question": "q", "response": "r"}', "not JSON"),
        (b"null", "not a JSON object"),
        ({"question": "q"}, "no response"),
        ({"question": "q", "response": None}, "no response"),
        ({"response": "r"}, "no question"),
        ({**GOOD, "question": ""}, "empty question"),
        ({**GOOD, "response": " \t\n\u2003"}, "empty response"),
        ({**GOOD, "response": 42}, "response is not text"),
        ({**GOOD, "question": ["q"]}, "question is not text"),
        ({**GOOD, "system_prompt": {}}, "system_prompt is not text"),
        ({**GOOD, "id": 1.5}, "id is neither text nor a whole number"),
        ({**GOOD, "id": True}, "id is neither text nor a whole number"),
        ({**GOOD, "response": "half \ud800"}, "response is not valid Unicode"),
    ],
)
def test_a_bad_row_has_a_reason_and_a_place_and_does_not_stop_the_pass(tmp_path, line, reason):
    path = file_of(tmp_path, GOOD, line, {**GOOD, "id": "h"})
    places, rows = zip(*open_source(FileSourceConfig(path=str(path)), seed=0).rows(), strict=True)
    assert places == (f"{path}:1", f"{path}:2", f"{path}:3")
    assert [row.id for row in (rows[0], rows[2])] == ["g", "h"]
    raw = line if isinstance(line, bytes) else json.dumps(line).encode()
    assert rows[1] == BadRow(f"{path}:2", reason, (raw + b"\n").decode(errors="replace")[:500])


def test_a_byte_order_mark_windows_line_ends_and_a_missing_last_line_end(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"question": "a", "response": "b"}\r\n{"question": "c", "response": "d\xe2\x80\xa8d"}'
    )
    assert rows_of(path) == [Demonstration("row-1", "", "a", "b"), Demonstration("row-2", "", "c", "d\u2028d")]


@pytest.mark.parametrize(
    ("rest", "what"),
    [(b'{"question": "q", "respon', "not JSON"), (b'{"question": "q", "response": "\xc3', "not UTF-8")],
)
def test_a_last_line_that_is_cut_off_is_told(tmp_path, rest, what):
    path = file_of(tmp_path, GOOD)
    path.write_bytes(path.read_bytes() + rest)
    with pytest.raises(
        UsageError, match=rf"rows\.jsonl:2: the last line is {what} .* as if cut off; write the file whole"
    ):
        rows_of(path)


def test_a_line_without_end_is_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_LINE_BYTES", 100)
    path = file_of(tmp_path, GOOD, b'{"question": "' + b"x" * 1000, {**GOOD, "id": "h"})
    first, bad, last = rows_of(path)
    assert (first.id, last.id) == ("g", "h")
    assert bad.reason == "a line of more than 100 bytes"
    assert len(bad.raw) == 100


def test_a_missing_file_a_folder_and_a_json_list_are_wrong_requests(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read the demonstrations .*none\.jsonl: No such file.*--set"):
        rows_of(tmp_path / "none.jsonl")
    with pytest.raises(UsageError, match="is a folder, but a file is needed"):
        rows_of(tmp_path)
    path = tmp_path / "list.json"
    for text in (json.dumps([GOOD]), json.dumps([GOOD], indent=4)):
        path.write_text(text)
        with pytest.raises(UsageError, match=r"list\.json holds one JSON list.*jq"):
            rows_of(path)


def test_a_column_that_no_row_has_is_a_wrong_request(tmp_path):
    path = file_of(tmp_path, {"instruction": "q", "output": "r"}, {"instruction": "q2", "output": "r", "extra": 1})
    expected = (
        r"none of the first 2 rows has a column 'question' for the prompt; columns there: instruction, output, extra"
    )
    with pytest.raises(UsageError, match=expected + r".*--set subsample\.source\.columns\.prompt=COLUMN"):
        rows_of(path)
    with pytest.raises(UsageError, match=r"'response' for the response.*columns\.response"):
        rows_of(path, prompt="instruction")


def test_a_wrong_column_is_noticed_long_before_the_end(tmp_path):
    path = file_of(tmp_path, *[{"question": "q", "out": "r"}] * 1500)
    rows = open_source(FileSourceConfig(path=str(path)), seed=0).rows()
    assert [next(rows)[1].reason for _ in range(999)] == ["no response"] * 999
    with pytest.raises(UsageError, match="none of the first 1000 rows"):
        next(rows)


def test_the_lab_writes_the_rows_it_is_asked_for():
    config = LabSourceConfig(task=AdditionsConfig(operations=3), rows=20, slips=0)
    source = open_source(config, seed=1)
    rows = [row for _, row in source.rows()]
    assert source.expected_rows == len({row.id for row in rows}) == 20
    for row in rows:
        start, *addends = (int(n) for n in row.id.split("+"))
        assert row.response.endswith(f"The answer is {(start + sum(addends)) % 5}.")
    assert rows == [row for _, row in open_source(config, seed=1).rows()]
    assert rows != [row for _, row in open_source(config, seed=2).rows()]


@pytest.mark.usefixtures("hang_limit")
@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize("kind", ["a named pipe", "a device", "a socket", "a folder"])
def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path, monkeypatch, kind, ending):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"rows.{ending}"
    with socket.socket(socket.AF_UNIX) as server:
        {
            "a named pipe": lambda: os.mkfifo(path),
            "a device": lambda: path.symlink_to("/dev/zero"),
            "a socket": lambda: server.bind(path.name),
            "a folder": path.mkdir,
        }[kind]()
        for opened in (rows_of, lambda path: fingerprint(FileSourceConfig(path=str(path)))):
            with pytest.raises(UsageError, match=rf"rows\.{ending} is {kind}, but a file is needed"):
                opened(path)


def test_a_pipe_in_a_folder_of_data_is_refused(tmp_path):
    os.mkfifo(tmp_path / "train.jsonl")
    with pytest.raises(UsageError, match=r"train\.jsonl is a named pipe"):
        fingerprint(HubSourceConfig(name=str(tmp_path)))


def test_a_fingerprint_follows_the_bytes_and_not_the_time(tmp_path):
    path = file_of(tmp_path, GOOD)
    file, folder = FileSourceConfig(path=str(path)), HubSourceConfig(name=str(tmp_path))
    before = fingerprint(file), fingerprint(folder)
    path.touch()
    assert (fingerprint(file), fingerprint(folder)) == before
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "more.jsonl").write_text("{}")
    assert fingerprint(file) == before[0]
    assert fingerprint(folder) != before[1]
    path.write_text("{}")
    assert fingerprint(file) != before[0]
    assert fingerprint(LabSourceConfig()) is None
    assert fingerprint(HubSourceConfig()) is None
    with pytest.raises(UsageError, match="No such file"):
        fingerprint(FileSourceConfig(path=str(tmp_path / "none")))
