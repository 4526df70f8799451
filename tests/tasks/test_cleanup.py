"""What may be removed, and what never is."""

import dataclasses
import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dpr_core.errors import DensePathError, UsageError
from tasks.artifacts.leases import Ledger
from tasks.artifacts.parent_runs import PipelineInfo
from tasks.artifacts.payloads import manifest_text
from tasks.artifacts.store import Store
from tasks.cleanup import GarbageCollector, Removable
from tasks.locks import exclusive
from tasks.run_stage import Outcome, run_stage
from tasks.running.stage import Stage
from tasks.running.stage_workdir import StageWorkdir
from tasks.running.workspace import Workspace
from tests.interruption import Killed
from tests.tasks.conftest import LAPSE, Homes

Make = Callable[..., Outcome]
Asked = Callable[..., PipelineInfo]


def found(store: Store, **options: Any) -> dict[str, Removable]:
    """What can be removed but for lock files, by its path in the home."""
    pieces = GarbageCollector(store, **options).find()
    return {str(piece.path.relative_to(store.home)): piece for piece in pieces if piece.kind != "lock"}


def clear(store: Store, **options: Any) -> list[Removable]:
    garbage = GarbageCollector(store, **options)
    return garbage.remove(garbage.find())


def interrupted(store: Store, stage: Stage, parent: str | None = None) -> str:
    """An attempt that has kept a state and then was killed; returns its ID."""

    def body(config: Any, work: Workspace) -> dict[str, float]:
        (work.output / "half.bin").write_bytes(bytes(1000))
        work._workdir.save_state(1, 1, {})
        raise Killed

    with pytest.raises(Killed):
        run_stage(dataclasses.replace(stage, body=body), stage.config(), {}, store=store, parent=parent)
    return store.records()[0].id


def failed(store: Store, key: str = "e" * 64) -> str:
    """An attempt that failed with half of its payload in the store."""
    from dpr_core.config.base import StageConfig

    run = store.begin(
        stage="number", name="n", version=1, key=key, config=StageConfig(), inputs={}, parent=None, description=""
    )
    for folder in ("output", "output.partial"):
        (root(store, run.id) / folder).mkdir(parents=True)
        (root(store, run.id) / folder / "half.bin").write_bytes(bytes(1000))
    run.end("FAILED", "no luck")
    return run.id


def root(store: Store, run_id: str) -> Path:
    return store.home / "artifacts" / run_id / "artifacts"


def test_a_finished_chain_has_nothing_to_remove_but_lock_files(store: Store, make: Make) -> None:
    make("double", {"number": make("number").id})
    before = {path for path in store.home.rglob("*") if "locks" not in path.parts}
    assert found(store) == {}
    assert {piece.kind for piece in clear(store)} == {"lock"}
    assert {path for path in store.home.rglob("*") if "locks" not in path.parts} == before
    assert GarbageCollector(store).find() == []


def test_the_payload_of_a_failed_attempt_goes_and_its_run_stays(store: Store) -> None:
    run_id = failed(store)
    assert {path: (p.kind, p.size, p.why) for path, p in found(store).items()} == {
        f"artifacts/{run_id}/artifacts/{name}": ("payload", 1000, f"run {run_id[:8]} (number · n) is FAILED")
        for name in ("output", "output.partial")
    }
    clear(store)
    assert [path.name for path in root(store, run_id).iterdir()] == ["config.yaml"]
    assert store.record(run_id).reason == "no luck"


def test_what_a_finished_artifact_was_made_from_is_never_removed(store: Store, make: Make) -> None:
    """Even where the status of an input was edited so that it looks like a failure."""
    number = make("number")
    add = make("add", {"number": number.id, "double": make("double", {"number": number.id}).id})
    for input_id in store.record(add.id).inputs.values():
        store._client.update_run(input_id, status="FAILED")
    clear(store, unfinished=True)
    for input_id in store.record(add.id).inputs.values():
        store._client.update_run(input_id, status="FINISHED")
        assert store.verify(input_id) == []


def test_unfinished_work_goes_only_if_that_is_asked_for(store: Store, toys: dict[str, Stage], make: Make) -> None:
    left = interrupted(store, toys["number"])
    key = store.record(left).key
    assert found(store) == {}
    [(path, piece)] = found(store, unfinished=True).items()
    assert (path, piece.kind) == (f"work/{key}", "work")
    assert piece.why == f"unfinished: {left[:8]} (number) would start from its beginning"
    clear(store)
    assert make("number").id == left
    interrupted_again = interrupted(store, dataclasses.replace(toys["number"], version=2))
    clear(store, unfinished=True)
    assert list((store.home / "work").iterdir()) == []
    assert store.record(interrupted_again).status == "KILLED"


def test_work_on_a_key_that_is_finished_goes_unless_its_pipeline_may_go_on(
    store: Store, toys: dict[str, Stage], make: Make, about: Asked
) -> None:
    parent = store.parent_runs.begin(about())
    left = interrupted(store, toys["number"], parent)
    workdir = store.home / "work" / store.record(left).key
    aside = store.home / "aside"
    workdir.rename(aside)
    done = make("number")
    assert done.id != left
    aside.rename(workdir)
    assert found(store) == {}
    store.parent_runs.end(parent, "FINISHED", {})
    why = found(store)[f"work/{workdir.name}"].why
    assert why == f"{done.id[:8]} (number) was finished in place of run {left[:8]}"


def test_a_workdir_whose_run_is_gone_and_old_scratch_go(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    workdir = store.home / "work" / ("a" * 64)
    workdir.mkdir()
    (workdir / "ATTEMPT").write_text("0" * 32)
    for name in ("tmpold", "tmpnew", "f" * 32, "mine"):
        (store.home / "work" / name).mkdir()
    hours_ago = time.time() - 7200
    for name in ("tmpold", "f" * 32, "mine"):
        os.utime(store.home / "work" / name, (hours_ago, hours_ago))
    assert set(found(store)) == {f"work/{'a' * 64}", "work/tmpold", f"work/{'f' * 32}"}
    monkeypatch.setattr(store, "embedded", False)
    assert f"work/{'a' * 64}" not in found(store), "it may be of the other store that this home was used with"


def test_what_a_live_process_works_on_is_left_alone(store: Store) -> None:
    key = "b" * 64
    run_id = failed(store, key)
    (store.home / "work" / key).mkdir()
    lock = store.home / "locks" / f"{key}.lock"
    with exclusive(lock):
        assert GarbageCollector(store).find() == []
    garbage = GarbageCollector(store)
    pieces = garbage.find()
    with exclusive(lock):
        assert garbage.remove(pieces) == []
    assert (root(store, run_id) / "output").is_dir()
    assert lock.exists()


def test_what_has_changed_since_it_was_found_is_left_alone(store: Store, toys: dict[str, Stage], make: Make) -> None:
    left = interrupted(store, toys["number"])
    garbage = GarbageCollector(store, unfinished=True)
    pieces = garbage.find()
    assert make("number").id == left
    removed = garbage.remove(pieces)
    assert all(piece.kind != "payload" for piece in removed)
    assert store.verify(left) == []


def test_files_of_runs_that_were_deleted_or_never_known_go(store: Store, make: Make) -> None:
    deleted, kept, needed, promoted = (make("number", value=value) for value in range(4))
    make("double", {"number": needed.id})
    store.registered_models.promote(promoted.id, f"runs:/{promoted.id}/output", "best", "champion", {}, "")
    for outcome in (deleted, needed, promoted):
        store._client.delete_run(outcome.id)
    (store.home / "artifacts" / ("e" * 32)).mkdir()
    (store.home / "artifacts" / "models").mkdir()
    assert {path: piece.why for path, piece in found(store).items()} == {
        f"artifacts/{deleted.id}": "its MLflow run was deleted",
        f"artifacts/{'e' * 32}": "MLflow has no such run",
    }
    garbage = GarbageCollector(store)
    garbage.remove(garbage.find())
    assert [version.title for version in garbage.promoted.values()] == ["best version 1 @champion"]
    assert not (store.home / "artifacts" / deleted.id).exists()
    assert store.verify(kept.id) == []
    for outcome in (needed, promoted):
        store._client.restore_run(outcome.id)
        assert store.verify(outcome.id) == []


def restored(store: Store, copy: Path) -> Store:
    """The store after its database was replaced by an older copy."""
    shutil.copy(copy, store.home / "mlflow.db")
    return Store.open()


@pytest.fixture
def forgotten(store: Store, make: Make, tmp_path: Path) -> tuple[Store, Outcome, list[Outcome]]:
    """A database that knows the first of three artifacts."""
    first = make("number", note="a\N{LATIN SMALL LETTER U WITH DIAERESIS}" + 8000 * "x")
    shutil.copy(store.home / "mlflow.db", tmp_path / "older.db")
    double = make("double", {"number": first.id})
    later = [double, make("add", {"number": first.id, "double": double.id})]
    return restored(store, tmp_path / "older.db"), first, later


def test_whole_artifacts_that_the_database_lost_stay(forgotten: tuple[Store, Outcome, list[Outcome]]) -> None:
    store, first, later = forgotten
    assert [record.id for record in store.records()] == [first.id]
    assert clear(store, unfinished=True) != []
    ids = {outcome.id for outcome in later}
    assert {each.id for each in store.unregistered()} == ids
    assert found(store) == {}
    assert set(found(store, unregistered=True)) == {f"artifacts/{run_id}" for run_id in ids}
    clear(store, unregistered=True)
    assert store.unregistered() == []


def test_lost_artifacts_are_taken_back_as_they_were(
    forgotten: tuple[Store, Outcome, list[Outcome]], make: Make
) -> None:
    store, first, later = forgotten
    for lost in store.unregistered():
        assert store.register(lost) == []
    assert store.unregistered() == []
    assert {record.id for record in store.records() if record.finished} == {first.id, *(each.id for each in later)}
    for outcome in later:
        assert store.verify(outcome.id) == []
        assert store.metrics(outcome.id) == outcome.metrics
        assert store._client.get_run(outcome.id).info.run_name == outcome.stage
    again = make("double", {"number": first.id})
    assert (again.id, again.status, again.metrics) == (later[0].id, "reused", later[0].metrics)


def test_a_run_that_finished_after_the_copy_was_made_is_taken_back(
    store: Store, toys: dict[str, Stage], make: Make, tmp_path: Path
) -> None:
    left = interrupted(store, toys["number"])
    shutil.copy(store.home / "mlflow.db", tmp_path / "older.db")
    assert make("number").id == left
    store = restored(store, tmp_path / "older.db")
    assert not store.record(left).finished
    clear(store, unfinished=True)
    [lost] = store.unregistered()
    assert (lost.id, lost.in_database) == (left, True)
    assert store.register(lost) == []
    assert (store.record(left).finished, store.record(left).reason) == (True, "")


def test_an_artifact_that_lost_its_digest_is_not_removed_and_gets_it_back(store: Store, make: Make) -> None:
    number = make("number")
    store._client.delete_tag(number.id, "dpr.digest")
    assert found(store) == {}
    [lost] = store.unregistered()
    assert store.register(lost) == []
    assert store.verify(number.id) == []


def test_taking_back_that_was_killed_can_be_done_again(
    forgotten: tuple[Store, Outcome, list[Outcome]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: Any) -> None:
        raise Killed

    store, _, _ = forgotten
    lost = store.unregistered()[0]
    with monkeypatch.context() as patch:
        patch.setattr(store._client, "set_tag", killed, raising=False)
        with pytest.raises(Killed):
            store.register(lost)
    [again] = [each for each in store.unregistered() if each.id == lost.id]
    assert store.register(again) == []


def test_what_was_damaged_meanwhile_is_not_taken_back(forgotten: tuple[Store, Outcome, list[Outcome]]) -> None:
    store, _, later = forgotten
    (root(store, later[0].id) / "output" / "weights.bin").write_bytes(b"")
    problems = {lost.id: store.register(lost) for lost in store.unregistered()}
    assert problems == {later[0].id: ["weights.bin: 0 bytes, expected 10240"], later[1].id: []}
    assert [lost.id for lost in store.unregistered()] == [later[0].id]


def test_what_was_made_from_a_lost_artifact_can_be_used_once_that_was_made_again(
    forgotten: tuple[Store, Outcome, list[Outcome]], make: Make
) -> None:
    store, first, (double, add) = forgotten
    (root(store, double.id) / "output" / "weights.bin").write_bytes(b"")
    for lost in store.unregistered():
        store.register(lost)
    source = store.fetch(add.id).inputs["double"]
    with pytest.raises(UsageError, match="there is no artifact"):
        store.fetch(source)
    again = make("double", {"number": first.id})
    assert (source, store.fetch(source).id, store.published(source).id) == (double.id, again.id, again.id)


def test_an_artifact_of_an_earlier_version_is_taken_back_by_its_stage(
    forgotten: tuple[Store, Outcome, list[Outcome]],
) -> None:
    store, _, later = forgotten
    manifest = root(store, later[0].id) / "MANIFEST.json"
    manifest.write_text(json.dumps({k: v for k, v in json.loads(manifest.read_text()).items() if k != "run"}))
    [lost] = [each for each in store.unregistered() if each.id == later[0].id]
    assert store.register(lost) == []
    record = store.record(lost.id)
    assert (record.stage, record.name, record.results, record.finished) == ("double", "double", {}, True)


def test_what_cannot_be_read_is_told_of_and_stays(
    forgotten: tuple[Store, Outcome, list[Outcome]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, _, later = forgotten
    unreadable = root(store, later[0].id)

    def text(folder: Path) -> str:
        if folder == unreadable:
            raise OSError(errno.EIO, "Input/output error")
        return manifest_text(folder)

    monkeypatch.setattr("tasks.artifacts.unregistered.manifest_text", text)
    with caplog.at_level(logging.WARNING, "dense_path"):
        assert [lost.id for lost in store.unregistered()] == [later[1].id]
    assert f"{unreadable.parent} is left alone: it cannot be read (Input/output error)" in caplog.messages
    clear(store, unfinished=True)
    clear(store, unregistered=True)
    assert (unreadable / "output" / "weights.bin").is_file()


def test_a_run_that_began_while_rubbish_was_looked_for_stays(store: Store, make: Make) -> None:
    garbage = GarbageCollector(store)
    number = make("number")
    begun = failed(store)
    folder = store.home / "artifacts" / begun
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (0, 0))  # as after a copy that keeps times
    pieces = garbage.find()
    assert {piece.path.name for piece in pieces} >= {begun}
    garbage.remove(pieces)
    assert store.verify(number.id) == []
    assert (root(store, begun) / "config.yaml").is_file()


def test_work_and_pipelines_that_the_database_lost_stay(
    store: Store, toys: dict[str, Stage], about: Asked, tmp_path: Path
) -> None:
    shutil.copy(store.home / "mlflow.db", tmp_path / "older.db")
    left = interrupted(store, toys["number"])
    key, parent = store.record(left).key, store.parent_runs.begin(about())
    store.parent_runs.end(parent, "FINISHED", {})
    store = restored(store, tmp_path / "older.db")
    assert list(found(store)) == [f"artifacts/{left}"], "the run itself had published nothing"
    assert set(found(store, unfinished=True)) == {f"artifacts/{left}", f"work/{key}"}
    assert set(found(store, unregistered=True)) == {f"artifacts/{left}", f"artifacts/{parent}"}


def test_a_half_upload_beside_a_finished_payload_goes(store: Store, make: Make) -> None:
    number = make("number")
    (root(store, number.id) / "output.partial").mkdir()
    assert list(found(store)) == [f"artifacts/{number.id}/artifacts/output.partial"]
    clear(store)
    assert store.verify(number.id) == []


def test_a_link_is_removed_and_not_followed(store: Store, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("mine")
    run_id = failed(store)
    payload = root(store, run_id) / "output"
    (payload / "half.bin").unlink()
    payload.rmdir()
    payload.symlink_to(tmp_path / "precious")
    clear(store)
    assert not payload.is_symlink()
    assert (tmp_path / "precious" / "file").read_text() == "mine"


def test_only_what_has_not_changed_for_so_long(store: Store) -> None:
    failed(store)
    assert found(store, older_than=timedelta(days=1)) == {}
    assert len(found(store, older_than=timedelta(0))) == 2


def test_the_cache_keeps_what_may_be_needed(store: Store, make: Make) -> None:
    number = make("number")
    for name in (number.id, "d" * 32, "verdicts"):
        (store.home / "cache" / name).mkdir()
    assert list(found(store)) == [f"cache/{'d' * 32}"]


def test_nothing_is_built_on_what_was_removed(store: Store, toys: dict[str, Stage], make: Make) -> None:
    left = interrupted(store, toys["number"])
    clear(store, unfinished=True)
    with pytest.raises(DensePathError, match="never finished"):
        make("double", {"number": left})
    assert make("number").id != left


def test_of_states_that_machines_share_go_those_that_are_known_here(
    store: Store, toys: dict[str, Stage], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setenv("DPR_STATES", shared.as_uri())
    run_id = interrupted(store, toys["number"])
    key = store.record(run_id).key
    theirs = StageWorkdir(tmp_path / "their home" / "work" / ("b" * 64))
    theirs.open("0" * 32)
    theirs.save_state(1, 1, {})
    assert not {"states", "work"} & {piece.kind for piece in GarbageCollector(store).find()}
    garbage = GarbageCollector(store, unfinished=True)
    found = {piece.kind: piece for piece in garbage.find()}
    assert (found["states"].where, found["states"].size) == (str(shared / key / run_id), sum_of(shared / key))
    assert found["states"].why == found["work"].why == "unfinished: " + found["work"].why.removeprefix("unfinished: ")
    assert {"states", "work"} < {piece.kind for piece in garbage.remove(garbage.find())}
    assert [path.name for path in shared.iterdir()] == ["b" * 64]
    monkeypatch.setenv("DPR_STATES", "s3://user-of-somebody:planted-secret@bucket")
    with pytest.raises(DensePathError, match="holds a user") as refused:
        GarbageCollector(store).find()
    assert "planted" not in str(refused.value)


def test_states_that_another_host_is_at_or_was_killed_at_stay(
    at: Homes, toys: dict[str, Stage], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also before the first is whole; what it left on purpose goes if that is asked for, and its run ends with it."""
    (tmp_path / "shared").mkdir()
    monkeypatch.setenv("DPR_STATES", (tmp_path / "shared").as_uri())
    theirs, ours = at("theirs"), at("ours")

    def removed(**options: Any) -> list[str]:
        return [piece.kind for piece in clear(ours, **options) if piece.kind == "states"]

    def body(config: Any, work: Workspace) -> dict[str, float]:
        half = work._workdir.states.place
        half.write("000000001/tensors-0.safetensors", b"half")
        assert removed() == removed(unfinished=True) == []
        assert half.files()
        work._workdir.save_state(1, 1, {})
        found = GarbageCollector(ours, unfinished=True).find()
        assert [piece for piece in found if piece.kind == "states"] == []
        raise Killed

    stage = dataclasses.replace(toys["number"], body=body)
    with monkeypatch.context() as patched:
        patched.setattr("tasks.artifacts.stage_run.StageRun.end", lambda *_, **named: None)
        with pytest.raises(Killed):
            run_stage(stage, stage.config(), {}, store=theirs)
    time.sleep(2 * LAPSE)
    assert removed(unfinished=True) == [], "whoever goes on with it may have just begun"
    left = interrupted(theirs, toys["number"])
    assert removed() == []
    assert removed(unfinished=True) == ["states"]
    assert Ledger.of(ours._client.get_run(left)).is_over
    assert list((tmp_path / "shared").iterdir()) == []


def sum_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
