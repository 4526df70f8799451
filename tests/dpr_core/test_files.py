import os
import socket
from pathlib import Path

import pytest

from dpr_core.errors import UsageError
from dpr_core.files import refuse_special


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
    for path in (file, link, tmp_path / "nothing", tmp_path / "nothing" / "below", Path("nul\0")):
        refuse_special(path)
