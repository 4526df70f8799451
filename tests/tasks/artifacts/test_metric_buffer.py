from collections.abc import Sequence
from pathlib import Path

import pytest

import tasks.artifacts.metric_buffer
from tasks.artifacts.metric_buffer import Entry, MetricBuffer


class Server:
    def __init__(self) -> None:
        self.away = False
        self.got: list[Entry] = []
        self.asked = 0

    def take(self, entries: Sequence[Entry]) -> bool:
        self.asked += 1
        if not self.away:
            self.got += entries
        return not self.away


@pytest.fixture
def server() -> Server:
    return Server()


def entries(*steps: int) -> list[Entry]:
    return [("loss", step / 2, 1000 + step, step) for step in steps]


def outbox(server: Server, file: Path) -> MetricBuffer:
    made = MetricBuffer(server.take)
    made.keep_in(file)
    return made


def test_what_is_sent_leaves_no_file(server: Server, tmp_path: Path) -> None:
    box = outbox(server, tmp_path / "metrics")
    box.add(entries(1, 2))
    box.flush()
    box.flush()
    assert server.got == entries(1, 2)
    assert server.asked == 1
    assert list(tmp_path.iterdir()) == []


def test_who_goes_on_sends_what_was_left_first(server: Server, tmp_path: Path) -> None:
    server.away = True
    first = outbox(server, tmp_path / "metrics")
    first.add([("nan", float("nan"), 1, 0), *entries(1, 2)])
    first.flush()
    server.away = False
    second = outbox(server, tmp_path / "metrics")
    second.add(entries(3))
    second.flush()
    assert server.got[0][0] == "nan"
    assert server.got[1:] == entries(1, 2, 3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", range(1, 23))
def test_a_line_cut_short_spoils_no_other(server: Server, tmp_path: Path, left: int) -> None:
    server.away = True
    file = tmp_path / "metrics"
    first = outbox(server, file)
    first.add(entries(1))
    first.flush()
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:left])
    second = outbox(server, file)
    second.add(entries(2))
    second.flush()
    third = outbox(server, file)
    server.away = False
    third.flush()
    assert server.got == entries(1, 2)


def test_what_is_in_the_file_is_not_written_again(server: Server, tmp_path: Path) -> None:
    server.away = True
    box = outbox(server, tmp_path / "metrics")
    for step in (1, 2, 3):
        box.add(entries(step))
        box.flush(now=True)
    assert (tmp_path / "metrics").read_text().count("\n") == 3


def test_after_a_failure_comes_a_pause(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(tasks.artifacts.metric_buffer.time, "monotonic", lambda: now)
    server.away = True
    box = outbox(server, tmp_path / "metrics")
    asked = []
    while now < 200:
        before = server.asked
        box.add(entries(int(now)))
        if server.asked > before:
            asked.append(now)
        now += 1
    assert asked == [2, 4, 8, 16, 32, 62, 92, 122, 152, 182]
    server.away = False
    box.flush(now=True)
    assert [entry[3] for entry in server.got] == list(range(200))


def test_without_a_file_it_waits_in_memory(server: Server) -> None:
    server.away = True
    box = MetricBuffer(server.take)
    box.add(entries(1))
    box.flush()
    server.away = False
    box.add(entries(2))
    box.flush(now=True)
    assert server.got == entries(1, 2)


def test_draining_waits_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.away = True
    box = outbox(server, tmp_path / "metrics")
    box.add(entries(1, 2))
    waited: list[Entry] = []
    box.drain(lambda sent: waited.extend(sent))
    assert waited == entries(1, 2)
    assert list(tmp_path.iterdir()) == []
    server.away = False
    box.flush(now=True)
    assert server.got == []
