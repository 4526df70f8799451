"""A stage that trains for some seconds, in a home of its own, with the store wherever a test has one."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import tasks.registry
from deployments.servers import POSTGRESQL, Server, create_database, postgresql, running, s3_server
from dpr_core.config.base import StageConfig
from tasks.artifacts.store import Store
from tasks.running.stage import Stage
from tasks.running.workspace import Workspace

STEPS = 60
PASSWORD = "se%2Fcret"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first, so that of several workers none waits for it at the end."""
    items.sort(key=lambda item: item.path.name != "test_stack.py")


class Steps(StageConfig):
    steps: int = STEPS


Event = Callable[[int], None]


def training(event: Event = lambda step: None, seconds: float = 0.02) -> Stage:
    """A stage that logs one metric a step, and lets a test interfere before each."""

    def body(config: StageConfig, work: Workspace) -> dict[str, float]:
        assert isinstance(config, Steps)
        found = work.restore()
        first = 0 if found is None else int(found["step"])
        for step in range(first, config.steps):
            event(step)
            work.metrics({"loss": 1 / (step + 1)}, step)
            work.checkpoint(step + 1, lambda step=step: {"step": step + 1})  # type: ignore[misc]
            time.sleep(seconds)
        (work.output / "deep").mkdir()
        (work.output / "deep" / "weights.bin").write_bytes(bytes(range(256)) * 4096)
        (work.output / "config.json").write_text(json.dumps({"steps": config.steps}))
        work.table("samples.json", [{"step": config.steps}])
        return {"loss": 1 / config.steps}

    return Stage("training", 1, Steps, body, lambda config: "Some steps.")


def history(store: Store, run_id: str) -> list[tuple[int, float]]:
    """Steps and values of the loss, without the final one, equals once."""
    logged = store._client.get_metric_history(run_id, "loss")
    return sorted({(each.step, each.value) for each in logged})


UNDISTURBED = [(step, 1 / (step + 1)) for step in range(STEPS)]


@contextmanager
def folder_for_postgresql() -> Iterator[Path]:
    """Not below pytest's own folder, which another user may not enter."""
    if not (POSTGRESQL / "initdb").exists():
        pytest.skip(f"there is no PostgreSQL 15 in {POSTGRESQL}: apt-get install postgresql-15")
    folder = Path(tempfile.mkdtemp(prefix="dense-path-postgresql-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def databases(*names: str) -> Iterator[tuple[Server, str]]:
    """PostgreSQL with empty databases, and what comes before their names in an address: user, password, place."""
    with folder_for_postgresql() as folder:
        server, port = postgresql(folder / "postgresql", "se/cret")
        with running(server):
            for name in names:
                create_database(name, port, "se/cret")
            yield server, f"owner:{PASSWORD}@127.0.0.1:{port}"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DPR_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("tasks.artifacts.metric_buffer.FLUSH_SECONDS", 0.1)
    monkeypatch.setattr(tasks.registry, "STAGES", {"training": training()})
    return tmp_path / "home"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    pytest.importorskip("moto", reason="there is no moto: pip install 'moto[s3]'")
    found, address = s3_server(tmp_path_factory.mktemp("s3"))
    with running(found):
        yield found, address
