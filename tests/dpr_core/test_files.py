import os
import socket
from pathlib import Path

import pytest

from dpr_core.errors import UsageError
from dpr_core.files import DuplicateKeyError, check_output, expanded, parse_json, refuse_special


def test_what_is_no_regular_file_is_refused_by_what_it_is(tmp_path: Path) -> None:
    fifo, folder, link = tmp_path / "pipe", tmp_path / "folder", tmp_path / "link"
    os.mkfifo(fifo)
    folder.mkdir()
    link.symlink_to(fifo)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
        for path, kind in [
            (fifo, "a named pipe"),
            (link, "a named pipe"),
            (folder, "a folder"),
            (tmp_path / "socket", "a socket"),
            (Path("/dev/zero"), "a device"),
        ]:
            with pytest.raises(UsageError, match=rf"{path} is {kind}, but a file is needed"):
                refuse_special(path)


def test_a_file_a_link_to_one_and_what_is_not_there_pass(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.touch()
    link.symlink_to(file)
    for path in (file, link, tmp_path / "nothing", tmp_path / "nothing" / "below"):
        refuse_special(path)


@pytest.mark.parametrize("name", ["nul\0", "half \ud800"])
def test_what_can_be_no_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is no name of a file"):
        refuse_special(Path(name))


def test_an_output_is_checked_before_it_is_written(tmp_path: Path) -> None:
    check_output(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="there is no folder .*none; make it first"):
        check_output(tmp_path / "none" / "out")
    with pytest.raises(UsageError, match="is a folder"):
        check_output(tmp_path)


def test_a_home_folder_is_found_or_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert expanded("~/rows.jsonl") == Path("/somewhere/rows.jsonl")
    with pytest.raises(UsageError, match=r"~nobody-here/rows\.jsonl: there is no such user here"):
        expanded("~nobody-here/rows.jsonl")


def test_json_is_read_strictly() -> None:
    assert parse_json('{"a": [1, {"a": 2.5}], "b": null}') == {"a": [1, {"a": 2.5}], "b": None}
    with pytest.raises(DuplicateKeyError, match="the key 'a' stands twice in one object"):
        parse_json('[{"b": {"a": 1, "c": 2, "a": 1}}]')
    for constant in ("NaN", "Infinity", "-Infinity"):
        with pytest.raises(ValueError, match=f"{constant} is no number of JSON"):
            parse_json(f'{{"a": {constant}}}')
    assert parse_json("Infinity", constants=True) == float("inf")
