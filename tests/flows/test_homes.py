"""A home that was moved, copied, made read-only, or restored with a database that is older than its artifacts."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.flows.conftest import TINY, Result

pytestmark = pytest.mark.integration

Dpr = Callable[..., Result]


@pytest.fixture
def elsewhere(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the home, whose first place does not exist as far as anybody can see."""
    home = tmp_path / "elsewhere"
    shutil.copytree(made.home, home, ignore=shutil.ignore_patterns("prefect"))
    with closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            database.execute(f"UPDATE {table} SET {column} = replace({column}, '{made.home}', '/nowhere')")
    return home


def test_everything_works_in_a_home_that_was_moved(dpr: Dpr, made: Any, elsewhere: Path, tmp_path: Path) -> None:
    reward = made.id("reward")
    assert reward in dpr("artifacts", home=elsewhere).stdout
    assert dpr("show", reward, "--json", home=elsewhere).json["files"] != []
    assert dpr("verify", "--all", home=elsewhere).status == 0
    assert dpr("export", reward, tmp_path / "out", "--part", "sft", home=elsewhere).status == 0
    assert json.loads(dpr("score", reward, "--text", "a", "b", "--json", home=elsewhere).stdout)["tokens"] != []
    again = dpr("run", TINY, "--json", home=elsewhere).json
    assert {entry["name"]: entry["id"] for entry in again["stages"]} == {
        entry["name"]: entry["id"] for entry in made.result.json["stages"]
    }
    assert (elsewhere / "artifacts" / again["run_id"] / "artifacts" / "run.json").is_file()
    assert str(elsewhere) in dpr("run", TINY, home=elsewhere).stdout


def test_a_read_only_home_is_read_and_not_written(
    dpr: Dpr, made: Any, elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tasks.local_home.tempfile.TemporaryFile", refused)
    for module in ("tasks.artifacts.store", "tasks.artifacts.parent_runs", "tasks.run_stage"):
        monkeypatch.setattr(f"{module}.exclusive", refused)
    before = {path: path.stat().st_mtime_ns for path in elsewhere.rglob("*") if "locks" not in path.parts}
    reward = made.id("reward")
    for command in (
        ("artifacts",),
        ("show", reward),
        ("verify", "--all"),
        ("export", reward, tmp_path / "out", "--part", "sft"),
        ("score", reward, "--text", "a", "b"),
        ("run", TINY, "--plan"),
    ):
        result = dpr(*command, home=elsewhere)
        assert result.status == 0, result.stderr
    for command in (
        ("run", TINY),
        ("run", TINY, "--set", "seed=9"),
        ("rerun", reward, "--set", "reference=0.34"),
        ("gc", "--yes"),
        ("verify", "--all", "--register"),
    ):
        dpr(*command, home=elsewhere).assert_refused(2, "cannot write to", "Read-only file system", "set DPR_HOME")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_home_whose_database_was_lost_is_made_whole(dpr: Dpr, made: Any, elsewhere: Path) -> None:
    ids = {entry["id"] for entry in made.result.json["stages"]}
    (elsewhere / "mlflow.db").unlink()
    assert dpr("artifacts", "--json", home=elsewhere).json == []
    kept = dpr("gc", "--yes", "--json", home=elsewhere)
    assert "whole, but not in the database; dpr verify --all --register" in kept.stderr
    assert ids <= {path.name for path in (elsewhere / "artifacts").iterdir()}
    told = dpr("verify", "--all", "--json", home=elsewhere)
    assert told.status == 1
    assert ids <= {entry["id"] for entry in told.json if not entry["sound"]}
    assert f"{len(told.json)} not in the database" in dpr("verify", "--all", home=elsewhere).stdout
    dpr("verify", next(iter(ids)), "--register", home=elsewhere).assert_refused(2, "--register goes with --all")
    back = dpr("verify", "--all", "--register", "--json", home=elsewhere)
    assert (back.status, [entry for entry in back.json if not entry.get("registered")]) == (0, [])
    assert dpr("verify", "--all", home=elsewhere).status == 0
    again = dpr("run", TINY, "--json", home=elsewhere).json
    results = {entry["name"]: entry["metrics"] for entry in made.result.json["stages"]}
    assert {entry["name"]: entry["metrics"] for entry in again["stages"] if entry["status"] == "reused"} == results
    assert dpr("gc", "--plan", "--json", home=elsewhere).stderr == ""
