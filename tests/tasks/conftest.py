"""A store of its own for every test, and three toy stages that build on each other: seed -> double -> add."""

import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import tasks.registry
from dpr_core.config.base import StageConfig
from tasks.artifacts.leases import Lease
from tasks.artifacts.mlflow_client import SETTINGS, make_database
from tasks.artifacts.parent_runs import PipelineInfo, StoredRequest
from tasks.artifacts.store import Store
from tasks.run_stage import Outcome, run_stage
from tasks.running.stage import Stage
from tasks.running.workspace import Workspace


class Number(StageConfig):
    value: int = 1
    note: str = ""
    execution: int = 0


class Factor(StageConfig):
    factor: int = 2


def number_body(config: Any, work: Workspace) -> dict[str, float]:
    for step in range(3):
        work.metrics({"loss": 1.0 / (step + 1)}, step)
        work.advance(step + 1, 3)
    write(work, config.value)
    return {"value": float(config.value)}


def double_body(config: Any, work: Workspace) -> dict[str, float]:
    value = read(work.input("number").path) * config.factor
    write(work, value)
    return {"value": float(value)}


def add_body(config: Any, work: Workspace) -> dict[str, float]:
    value = sum(read(work.input(role).path) for role in work.inputs)
    write(work, value)
    return {"value": float(value)}


def write(work: Workspace, value: int) -> None:
    (work.output / "deep").mkdir()
    (work.output / "deep" / "value.json").write_text(json.dumps(value))
    (work.output / "weights.bin").write_bytes(bytes(range(256)) * 40)


def read(path: Path) -> int:
    return int(json.loads((path / "deep" / "value.json").read_text()))


NUMBER = Stage("number", 1, Number, number_body, lambda config: "A number.")
DOUBLE = Stage("double", 1, Factor, double_body, lambda config: "Twice it.", {"number": ("number",)})
ADD = Stage(
    "add",
    1,
    StageConfig,
    add_body,
    lambda config: "All of them.",
    {"number": ("number",), "double": ("double",), "more": ("number", "double")},
    frozenset({"more"}),
)
TOYS = {stage.name: stage for stage in (NUMBER, DOUBLE, ADD)}

Make = Callable[..., Outcome]
Homes = Callable[[str], Store]

LAPSE = 2.0
"""Seconds without a sign of life after which a run is taken over."""


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to make its schema, so it is made once and copied."""
    database = tmp_path_factory.mktemp("template") / "mlflow.db"
    os.environ.update(SETTINGS)
    make_database(database)
    return database


@pytest.fixture
def home(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    monkeypatch.setenv("DPR_HOME", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(tasks.registry, "STAGES", TOYS)
    return folder


@pytest.fixture
def store(home: Path) -> Store:
    return Store.open()


@pytest.fixture
def make(store: Store) -> Make:
    """Run a toy stage by name: make("number", value=3), make("double", {"number": id})."""

    def make(stage: str, inputs: dict[str, str] | None = None, *, force: bool = False, **fields: Any) -> Outcome:
        toy = TOYS[stage]
        moment = datetime.now(UTC) if force else None
        return run_stage(toy, toy.config(**fields), inputs or {}, store=store, not_before=moment)

    return make


@pytest.fixture
def about() -> Callable[..., PipelineInfo]:
    """What a parent run says of its pipeline: about("demo", {"a": 1})."""

    def build(name: str = "demo", settings: dict[str, Any] | None = None) -> PipelineInfo:
        return PipelineInfo(
            name, "What it is.", settings or {}, StoredRequest({"flow": "toy", "name": name, **(settings or {})})
        )

    return build


@pytest.fixture
def toys() -> dict[str, Stage]:
    return TOYS


@pytest.fixture
def at(home: Path, tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Homes:
    """The store that homes share, as a home of this name opens it."""
    database = tmp_path / "shared.db"
    shutil.copy(empty_database, database)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    monkeypatch.setenv("DPR_LEASE_SECONDS", str(LAPSE))

    def open_store(name: str) -> Store:
        monkeypatch.setenv("DPR_HOME", str(tmp_path / name))
        return Store.open()

    return open_store


def silence(monkeypatch: pytest.MonkeyPatch, *stores: Store) -> None:
    """Heartbeats of these are not sent, as of a process that is stopped."""
    beat = Lease._beat
    clients = [store._client for store in stores]
    monkeypatch.setattr(Lease, "_beat", lambda lease: None if lease._client in clients else beat(lease))
