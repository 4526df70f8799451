"""One tiny pipeline, run once by the command line for all tests here, and ways to run it again or call `dpr`."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dpr_core.config.pipeline import PipelineConfig
from flows import recipes
from flows.cli.__main__ import app
from tasks.artifacts.store import Store
from tasks.graph import Node, in_order, resolved
from tasks.registry import stage_named
from tasks.run_stage import Outcome, run_stage
from tests import forked

ROOT = Path(__file__).parents[2]
TINY = Path(__file__).with_name("tiny.yaml")

# Read when prefect is first imported. The command line sets the first two itself, for a process of its own.
os.environ["PREFECT_LOGGING_LEVEL"] = os.environ["PREFECT_SERVER_LOGGING_LEVEL"] = "CRITICAL"
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"


@dataclass(frozen=True)
class Result:
    """What a command came to."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)

    def assert_refused(self, status: int, *words: str) -> str:
        """A failed command says why on stderr, in sentences and not as a traceback, and prints no document."""
        assert self.status == status, self.stderr or self.stdout
        assert self.stdout == ""
        assert "Traceback" not in self.stderr
        last = self.stderr[self.stderr.rindex("error: ") :]
        for word in words:
            assert word in last
        return last


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a process that has its store in `home` and nothing of the user's or of these tests."""
    settings = ("DPR_", "PREFECT_", "MLFLOW_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**inherited, "DPR_HOME": str(home), "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def run_dpr(*arguments: object, home: Path, **more: str) -> Result:
    """A command from its start to its end, with a Prefect server of its own where it needs one."""
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    done = subprocess.run(
        command, env=environment(home, **more), cwd=home.parent, capture_output=True, text=True, timeout=300
    )
    return Result(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Made:
    """A finished pipeline: where it is stored and the document that `dpr run --json` printed."""

    home: Path
    result: Result

    def id(self, name: str) -> str:
        """The artifact that a stage made, by its name in the pipeline."""
        ids = {entry["name"]: str(entry["id"]) for entry in self.result.json["stages"]}
        return ids[name]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, dpr_process: Callable[..., Result]) -> Made:
    """The tiny pipeline, run by `dpr run`. Tests may add to it, and leave what is there alone."""
    return run_tiny(tmp_path_factory.mktemp("made") / "home", dpr_process)


def run_tiny(home: Path, dpr_process: Callable[..., Result]) -> Made:
    result = dpr_process("run", TINY, "--json", home=home)
    assert result.status == 0, result.stderr
    return Made(home, result)


@pytest.fixture(scope="session")
def flow_environment(prefect_here: None) -> Callable[..., dict[str, str]]:
    """`flow_environment(home, **more)`: the environment of a process whose flows run on the server of these tests."""
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    return lambda home, **more: environment(home, PREFECT_API_URL=url, PREFECT_LOGGING_LEVEL="CRITICAL", **more)


@pytest.fixture(scope="session")
def dpr_process(flow_environment: Callable[..., dict[str, str]]) -> Callable[..., Result]:
    """`dpr_process(*arguments, home=..., **environment)`: a command in a process of its own, from the fork server."""

    def call(*arguments: object, home: Path, **more: str) -> Result:
        done = forked.run(["-m", "flows.cli", *arguments], flow_environment(home, **more), home.parent)
        return Result(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def process_environment() -> Callable[..., dict[str, str]]:
    return environment


@pytest.fixture
def dpr(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """`dpr(*arguments, home=...)`: a command in this process, which is quick. Without a home, a fresh one."""
    root = logging.getLogger()
    for name in [name for name in os.environ if name.startswith(("DPR_", "MLFLOW_"))]:
        monkeypatch.delenv(name)

    def call(*arguments: object, home: Path = tmp_path / "home") -> Result:
        monkeypatch.setenv("DPR_HOME", str(home))
        monkeypatch.setattr(root, "handlers", [])
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        monkeypatch.setattr(root, "handlers", [])
        return Result(done.exit_code, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def prefect_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prefect for flows in this process: one temporary server for all of them."""
    os.environ["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect"))
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=200):
        yield


@pytest.fixture(scope="session")
def tiny() -> Callable[..., PipelineConfig]:
    """`tiny(*assignments)`: the tiny pipeline's configuration, changed."""

    def load(*assignments: str) -> PipelineConfig:
        return recipes.load(str(TINY), assignments)

    return load


@pytest.fixture(scope="session")
def open_store() -> Callable[[Path], Store]:
    """`open_store(home)`: the store there, whatever the environment says."""

    def open_(home: Path) -> Store:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("MLFLOW_TRACKING_URI", raising=False)
            patch.setenv("DPR_HOME", str(home))
            return Store.open()

    return open_


@pytest.fixture(scope="session")
def run_graph() -> Callable[..., dict[str, Outcome]]:
    """`run_graph(store, nodes, parent=None)`: run stages without Prefect; the outcomes by name."""

    def run_all(store: Store, nodes: list[Node], parent: str | None = None) -> dict[str, Outcome]:
        outcomes: dict[str, Outcome] = {}
        for node in in_order(nodes):
            inputs, stage = resolved(node, outcomes), stage_named(node.stage)
            outcomes[node.name] = run_stage(stage, node.config, inputs, store=store, parent=parent, name=node.name)
        return outcomes

    return run_all
