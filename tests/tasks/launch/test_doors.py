"""Who is let in to a stage that several machines do, and who is not."""

import socket
import stat
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from dpr_core.errors import UsageError
from tasks.launch.doors import door_for_machines, door_of_this_machine, knock, receive, secret_of, send
from tasks.launch.machines import free_port
from tasks.local_home import open_home


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    def home(name: str) -> Path:
        monkeypatch.setenv("DPR_HOME", str(tmp_path / name))
        return open_home()

    return home("ours"), home("theirs")


def beside(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_the_secret_stays_and_is_for_its_owner_alone(homes: tuple[Path, Path]) -> None:
    ours, theirs = homes
    secret = secret_of(ours)
    assert len(secret) == 32
    assert secret_of(ours) == secret != secret_of(theirs)
    assert stat.S_IMODE((ours / "SECRET").stat().st_mode) == 0o600


def test_who_knows_the_secret_is_let_in_with_what_they_say_first(homes: tuple[Path, Path]) -> None:
    ours, _ = homes
    port = free_port()
    with door_for_machines(port, ours) as door:
        beside(lambda: send(knock(f"127.0.0.1:{port}", ours), rank=3))
        admitted = door.admit()
    assert admitted is not None
    assert admitted[1] == {"rank": 3}


@pytest.mark.parametrize("they_have_one", [True, False])
def test_who_knows_another_secret_or_none_is_not(homes: tuple[Path, Path], they_have_one: bool) -> None:
    ours, theirs = homes
    port, refused = free_port(), []

    def stranger() -> None:
        with pytest.raises(UsageError, match=f"the secret in {theirs}/SECRET; set DPR_HOME") as error:
            send(knock(f"127.0.0.1:{port}", theirs), rank=0)
        refused.append(error)

    if they_have_one:
        secret_of(theirs)
    with door_for_machines(port, ours) as door:
        thread = beside(stranger)
        assert door.admit() is None
        thread.join(10)
    assert len(refused) == 1


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\x0a" + b'{"rank":0}' + b"\0\0\0\x02{}"])
def test_who_says_nothing_or_something_else_is_not_waited_for(
    homes: tuple[Path, Path], said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.launch.doors.HANDSHAKE_SECONDS", 1)
    port = free_port()
    with door_for_machines(port, homes[0]) as door, socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(said)
        assert door.admit() is None


def test_a_port_that_is_taken_is_named(homes: tuple[Path, Path]) -> None:
    port = free_port()
    with (
        door_for_machines(port, homes[0]),
        pytest.raises(UsageError, match=f"main_port: cannot listen on port {port} "),
        door_for_machines(port, homes[0]),
    ):
        pass


def test_processes_of_this_machine_need_no_secret(homes: tuple[Path, Path]) -> None:
    lines: list[Connection] = []
    with door_of_this_machine() as door:
        lines.append(knock(door.address, homes[0]))
        send(lines[0], rank=1)
        admitted = door.admit()
    assert admitted is not None
    send(admitted[0], answer="yes")
    assert receive(lines[0]) == {"answer": "yes"}
    assert not (homes[0] / "SECRET").exists()


def test_a_folder_for_which_no_socket_has_a_name_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with pytest.raises(UsageError, match="set TMPDIR to a shorter path"), door_of_this_machine():
        pass
