import errno
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import dpr_core.state_storage
from dpr_core.errors import DensePathError
from tasks.artifacts.identity import Manifest
from tasks.local_home import syncing
from tasks.running.stage_workdir import StageWorkdir
from tasks.running.states import STATES_KEPT, States


@pytest.fixture
def workdir(tmp_path: Path) -> StageWorkdir:
    workdir = StageWorkdir(tmp_path / "work" / "key")
    workdir.open("run-1")
    return workdir


def put(workdir: StageWorkdir, name: str, text: str) -> None:
    (workdir.output / name).parent.mkdir(parents=True, exist_ok=True)
    (workdir.output / name).write_text(text)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def state(step: int) -> dict[str, Any]:
    return {"step": step, "weights": torch.full((3,), float(step))}


def keep(workdir: StageWorkdir, step: int, state: dict[str, Any]) -> int:
    return workdir.save_state(step, step, state)


def newest(workdir: StageWorkdir) -> dict[str, Any] | None:
    left = workdir.latest_state()
    return None if left is None else left.read()


def test_the_newest_state_comes_back_with_the_output_as_it_was(workdir: StageWorkdir) -> None:
    put(workdir, "half/model", "at half")
    assert keep(workdir, 5, state(5)) > 0
    put(workdir, "whole/model", "written after the state")
    again = StageWorkdir(workdir.folder)
    assert again.runs_left() == ["run-1"]
    again.open("run-1")
    found = newest(again)
    assert found is not None
    assert (found["step"], found["weights"].tolist()) == (5, [5.0, 5.0, 5.0])
    assert files(again.output) == ["half/model"]


def test_two_states_are_kept(workdir: StageWorkdir) -> None:
    for step in (1, 2, 10):
        keep(workdir, step, state(step))
    assert STATES_KEPT == 2
    assert {path.split("/")[0] for path in files(workdir.folder / "states")} == {"000000002", "000000010"}


@pytest.mark.parametrize(
    "damage", ["states/000000002/tensors-0.safetensors", "states/000000002/state.json", "states/000000002/SEAL.json"]
)
@pytest.mark.parametrize("how", ["flip", "cut", "missing"])
def test_a_damaged_state_gives_way_to_the_one_before(
    workdir: StageWorkdir, damage: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    keep(workdir, 1, state(1))
    keep(workdir, 2, state(2))
    harm(workdir.folder / damage, how)
    found = newest(workdir)
    assert found is not None
    assert found["step"] == 1
    half_written = damage.endswith("SEAL.json") and how == "missing"
    assert half_written or "the state of step 2 is not used: " in caplog.text


def harm(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[-10] ^= 1  # in the last hash of a seal
        path.write_bytes(content)


def test_output_that_changed_after_the_state_takes_the_state_with_it(workdir: StageWorkdir) -> None:
    put(workdir, "model", "at 1")
    keep(workdir, 1, state(1))
    put(workdir, "model", "torn")
    assert newest(workdir) is None
    assert files(workdir.output) == []


def test_a_state_of_another_format_is_refused_and_stays(workdir: StageWorkdir) -> None:
    """The first format had no number."""
    keep(workdir, 1, state(1))
    file = workdir.folder / "states" / "000000001" / "SEAL.json"
    seal = json.loads(file.read_text())
    del seal["format"]
    file.write_text(json.dumps(seal))
    with pytest.raises(DensePathError, match="another version of this program kept .* step 1.*dpr gc --unfinished"):
        newest(workdir)
    assert file.exists()


def test_without_a_state_the_output_is_emptied(workdir: StageWorkdir) -> None:
    put(workdir, "model", "left over")
    again = StageWorkdir(workdir.folder)
    again.open("run-1")
    assert files(again.output) == []
    assert newest(again) is None


def test_another_attempt_gets_an_empty_workdir(workdir: StageWorkdir) -> None:
    keep(workdir, 1, state(1))
    workdir.open("run-2")
    assert workdir.runs_left() == ["run-2"]
    assert newest(workdir) is None


def test_half_a_state_is_no_state(workdir: StageWorkdir, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(workdir, 1, state(1))

    def die(states: States, seal: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(States, "_seal", die)
    with pytest.raises(KeyboardInterrupt):
        keep(workdir, 2, state(2))
    found = newest(workdir)
    assert found is not None
    assert found["step"] == 1


def test_a_full_disk_keeps_the_state_before_and_tells_how_much(
    workdir: StageWorkdir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keep(workdir, 1, state(1))

    def full(tensors: Any, file: Path, _: Any) -> None:
        file.write_bytes(bytes(1500))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(dpr_core.state_storage, "save_file", full)
    caplog.set_level(logging.WARNING)
    assert keep(workdir, 2, {"step": 2, "parts": [{"weights": torch.zeros(375)}, 1.0]}) == 0
    assert "no state could be kept at step 2 (" in caplog.text
    assert " are free, and it needs 1.5 kB); " in caplog.text
    assert not list(workdir.folder.rglob("000000002*"))
    monkeypatch.undo()
    found = newest(workdir)
    assert found is not None
    assert found["step"] == 1


def test_any_other_failure_to_keep_a_state_is_raised(workdir: StageWorkdir) -> None:
    with pytest.raises(TypeError, match="cannot be kept"):
        keep(workdir, 1, {"strange": object()})


def test_when_it_is_time(workdir: StageWorkdir, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("tasks.running.stage_workdir.time.monotonic", lambda: now)
    workdir.open("run-1")
    assert [step for step in range(1, 8) if workdir.is_due(step, None, 3)] == [3, 6]
    assert not workdir.is_due(1, None, None)
    now = 100.0 + 59
    assert not workdir.is_due(1, 1.0, None)
    now = 100.0 + 60
    assert workdir.is_due(1, 1.0, None)
    keep(workdir, 1, state(1))
    assert not workdir.is_due(2, 1.0, None)


def test_what_is_finished_is_written_down(workdir: StageWorkdir) -> None:
    put(workdir, "model", "done")
    assert workdir.done() is None
    assert not workdir.is_resumable
    manifest = Manifest.of_directory(workdir.output, stage="s", stage_version=1, config={}, seed=0, inputs={})
    workdir.mark_done(manifest, {"loss": 0.5}, 7)
    again = StageWorkdir(workdir.folder)
    assert again.is_resumable
    again.open("run-1")
    assert again.done() == (manifest, {"loss": 0.5}, 7)
    assert files(again.output) == ["model"]
    again.discard_done()
    assert again.done() is None


def test_half_states_of_those_that_were_killed_do_not_pile_up(workdir: StageWorkdir) -> None:
    half = workdir.folder / "states" / "000000007"
    half.mkdir(parents=True)
    (half / "tensors-0.safetensors").write_text("")
    assert not workdir.is_resumable
    workdir.open("run-1")
    assert not half.exists()


def test_folders_that_came_after_the_state_go_with_their_files(workdir: StageWorkdir) -> None:
    put(workdir, "kept/deep/model", "at 1")
    keep(workdir, 1, state(1))
    put(workdir, "official/new/answers.json", "later")
    assert newest(workdir) is not None
    assert files(workdir.output) == ["kept/deep/model"]
    assert sorted(path.name for path in workdir.output.iterdir()) == ["kept"]


def test_what_other_versions_made_is_neither_gone_on_with_nor_thrown_away(
    workdir: StageWorkdir, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(workdir, "model", "at 1")
    monkeypatch.setattr("tasks.running.states.library_versions", lambda: {"torch": "1", "numpy": "2"})
    keep(workdir, 1, state(1))
    put(workdir, "later", "after the state")
    monkeypatch.setattr("tasks.running.stage_workdir.library_versions", lambda: {"torch": "3", "numpy": "2"})
    with pytest.raises(DensePathError, match=r"other versions \(torch 1 -> 3\).*dpr gc --unfinished"):
        newest(workdir)
    assert files(workdir.output) == ["later", "model"]
    monkeypatch.setattr("tasks.running.stage_workdir.library_versions", lambda: {"torch": "1", "numpy": "2"})
    found = newest(workdir)
    assert found is not None
    assert found["step"] == 1


def test_files_reach_the_disk_while_something_else_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    file.write_text("x")
    os.mkfifo(pipe)
    began, synced = threading.Event(), list[Path]()
    monkeypatch.setattr("tasks.local_home.sync", lambda path: began.wait(5) and synced.append(path))
    with syncing([pipe, file]):
        assert not synced
        began.set()
    assert synced == [file]
    with pytest.raises(FileNotFoundError), syncing([tmp_path / "nowhere"]):
        pass
