"""A store that others write to as well: what it says never becomes the name of a file elsewhere."""

from pathlib import Path
from typing import Any

import pytest

from dpr_core.errors import UsageError
from tasks.artifacts.store import Store
from tasks.cleanup import GarbageCollector
from tests.tasks.conftest import Make, Number


@pytest.mark.parametrize("key", ["../../precious", "/precious", "a/../../precious", "k\0", "K" * 64, "f" * 64 + "\n"])
def test_a_key_that_is_none_names_no_lock_and_no_folder(store: Store, tmp_path: Path, key: str) -> None:
    attempt = store.begin(
        stage="number", name="n", version=1, key="0" * 64, config=Number(), inputs={}, parent=None, description=""
    )
    attempt.end("FAILED")
    payload = (store.folders()[attempt.id] or tmp_path) / "output"
    payload.mkdir(parents=True)
    store._client.set_tag(attempt.id, "dpr.key", key)
    assert store.record(attempt.id).key == ""
    (tmp_path / "precious.lock").write_text("mine")
    (tmp_path / "precious").mkdir()
    garbage = GarbageCollector(store, unfinished=True)
    garbage.remove(garbage.find())
    assert not payload.exists()
    assert store.with_live_status(store.record(attempt.id)).status == "FAILED"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "precious", "precious.lock"]
    assert (tmp_path / "precious.lock").read_text() == "mine"


@pytest.mark.parametrize("run_id", ["../../precious", "/precious", "ABCD" * 8, "abcd" * 8 + "/.."])
def test_a_run_by_a_name_that_is_no_id_is_none_of_ours(
    store: Store, make: Make, monkeypatch: pytest.MonkeyPatch, run_id: str
) -> None:
    number = make("number")
    search = store._client.search_runs

    def hostile(*arguments: Any, **options: Any) -> Any:
        runs = search(*arguments, **options)
        for run in runs:
            run.info._run_id = run_id
        assert all(run.info.run_id == run_id for run in runs)
        return runs

    monkeypatch.setattr(store._client, "search_runs", hostile, raising=False)
    assert store.records() == []
    assert store.folders() == {}
    with pytest.raises(UsageError, match="artifact"):
        store.fetch(number.id)


@pytest.mark.parametrize("reference", ["../../etc", "/etc/passwd", "runs:/../x", "abcd\0", "ab/../cd", "%2e%2e%2f"])
def test_references_are_ids(store: Store, reference: str) -> None:
    with pytest.raises(UsageError, match="artifact ID|too short"):
        store.fetch(reference)
