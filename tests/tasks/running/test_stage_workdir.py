import errno
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import dpr_core.state
from dpr_core.errors import DensePathError
from tasks.artifacts.identity import Manifest
from tasks.running.stage_workdir import KEPT, StageWorkdir, write_state


@pytest.fixture
def bench(tmp_path: Path) -> StageWorkdir:
    bench = StageWorkdir(tmp_path / "work" / "key")
    bench.open("run-1")
    return bench


def put(bench: StageWorkdir, name: str, text: str) -> None:
    (bench.output / name).parent.mkdir(parents=True, exist_ok=True)
    (bench.output / name).write_text(text)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def state(step: int) -> dict[str, Any]:
    return {"step": step, "weights": torch.full((3,), float(step))}


def keep(bench: StageWorkdir, step: int, state: dict[str, Any]) -> int:
    return bench.keep(step, step, lambda folder: write_state(state, folder))


def newest(bench: StageWorkdir) -> dict[str, Any] | None:
    left = bench.newest()
    return None if left is None else dpr_core.state.read(left.folder)


def test_the_newest_state_comes_back_with_the_output_as_it_was(bench: StageWorkdir) -> None:
    put(bench, "half/model", "at half")
    assert keep(bench, 5, state(5)) > 0
    put(bench, "whole/model", "written after the state")
    again = StageWorkdir(bench.folder)
    assert again.attempt() == "run-1"
    again.open("run-1")
    found = newest(again)
    assert found is not None
    assert (found["step"], found["weights"].tolist()) == (5, [5.0, 5.0, 5.0])
    assert files(again.output) == ["half/model"]


def test_two_states_are_kept(bench: StageWorkdir) -> None:
    for step in (1, 2, 10):
        keep(bench, step, state(step))
    assert KEPT == 2
    assert {path.split("/")[0] for path in files(bench.folder / "states")} == {"000000002", "000000010"}


@pytest.mark.parametrize(
    "damage", ["states/000000002/state.safetensors", "states/000000002/state.json", "states/000000002/SEAL.json"]
)
@pytest.mark.parametrize("how", ["flip", "cut", "missing"])
def test_a_damaged_state_gives_way_to_the_one_before(
    bench: StageWorkdir, damage: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    keep(bench, 1, state(1))
    keep(bench, 2, state(2))
    harm(bench.folder / damage, how)
    found = newest(bench)
    assert found is not None
    assert found["step"] == 1
    assert "the state of step 2 is not used: " in caplog.text


def harm(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def test_output_that_changed_after_the_state_takes_the_state_with_it(bench: StageWorkdir) -> None:
    put(bench, "model", "at 1")
    keep(bench, 1, state(1))
    put(bench, "model", "torn")
    assert newest(bench) is None
    assert files(bench.output) == []


def test_without_a_state_the_output_is_emptied(bench: StageWorkdir) -> None:
    put(bench, "model", "left over")
    again = StageWorkdir(bench.folder)
    again.open("run-1")
    assert files(again.output) == []
    assert newest(again) is None


def test_another_attempt_gets_an_empty_bench(bench: StageWorkdir) -> None:
    keep(bench, 1, state(1))
    bench.open("run-2")
    assert bench.attempt() == "run-2"
    assert newest(bench) is None


def test_half_a_state_is_no_state(bench: StageWorkdir, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(bench, 1, state(1))

    def die(path: Path, text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tasks.running.stage_workdir.write_whole", die)
    with pytest.raises(KeyboardInterrupt):
        keep(bench, 2, state(2))
    found = newest(bench)
    assert found is not None
    assert found["step"] == 1


def test_a_full_disk_keeps_the_state_before_and_tells_how_much(
    bench: StageWorkdir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keep(bench, 1, state(1))

    def full(state: Any, folder: Path, rank: int, ranks: int) -> None:
        (folder / "state.safetensors").write_bytes(bytes(1500))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(dpr_core.state, "write", full)
    caplog.set_level(logging.WARNING)
    assert keep(bench, 2, {"step": 2, "parts": [{"weights": torch.zeros(375)}, 1.0]}) == 0
    assert "no state could be kept at step 2 (" in caplog.text
    assert " are free, and it needs 1.5 kB); " in caplog.text
    assert not list(bench.folder.rglob("000000002*"))
    monkeypatch.undo()
    found = newest(bench)
    assert found is not None
    assert found["step"] == 1


def test_any_other_failure_to_keep_a_state_is_raised(bench: StageWorkdir) -> None:
    with pytest.raises(TypeError, match="cannot be kept"):
        keep(bench, 1, {"strange": object()})


def test_when_it_is_time(bench: StageWorkdir, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("tasks.running.stage_workdir.time.monotonic", lambda: now)
    bench.open("run-1")
    assert [step for step in range(1, 8) if bench.is_due(step, None, 3)] == [3, 6]
    assert not bench.is_due(1, None, None)
    now = 100.0 + 59
    assert not bench.is_due(1, 1.0, None)
    now = 100.0 + 60
    assert bench.is_due(1, 1.0, None)
    keep(bench, 1, state(1))
    assert not bench.is_due(2, 1.0, None)


def test_what_is_finished_is_written_down(bench: StageWorkdir) -> None:
    put(bench, "model", "done")
    assert bench.finished() is None
    assert not bench.holds_work
    manifest = Manifest.of_directory(bench.output, stage="s", stage_version=1, config={}, seed=0, inputs={})
    bench.finish(manifest, {"loss": 0.5}, 7)
    again = StageWorkdir(bench.folder)
    assert again.holds_work
    again.open("run-1")
    assert again.finished() == (manifest, {"loss": 0.5}, 7)
    assert files(again.output) == ["model"]
    again.reopen()
    assert again.finished() is None


def test_half_states_of_those_that_were_killed_do_not_pile_up(bench: StageWorkdir) -> None:
    half = bench.folder / "states" / "000000007.new"
    half.mkdir()
    (half / "SEAL.json").write_text("{}")
    assert not bench.holds_work
    bench.open("run-1")
    assert not half.exists()


def test_folders_that_came_after_the_state_go_with_their_files(bench: StageWorkdir) -> None:
    put(bench, "kept/deep/model", "at 1")
    keep(bench, 1, state(1))
    put(bench, "official/new/answers.json", "later")
    assert newest(bench) is not None
    assert files(bench.output) == ["kept/deep/model"]
    assert sorted(path.name for path in bench.output.iterdir()) == ["kept"]


def test_what_other_versions_made_is_neither_gone_on_with_nor_thrown_away(
    bench: StageWorkdir, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bench, "model", "at 1")
    monkeypatch.setattr("tasks.running.stage_workdir.library_versions", lambda: {"torch": "1", "numpy": "2"})
    keep(bench, 1, state(1))
    put(bench, "later", "after the state")
    monkeypatch.setattr("tasks.running.stage_workdir.library_versions", lambda: {"torch": "3", "numpy": "2"})
    with pytest.raises(DensePathError, match=r"other versions \(torch 1 -> 3\).*dpr gc --unfinished"):
        newest(bench)
    assert files(bench.output) == ["later", "model"]
    monkeypatch.setattr("tasks.running.stage_workdir.library_versions", lambda: {"torch": "1", "numpy": "2"})
    found = newest(bench)
    assert found is not None
    assert found["step"] == 1
