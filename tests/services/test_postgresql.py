"""PostgreSQL as MLflow's backend and as Prefect's: it works, many may start at once, and a restart loses nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments.servers import Server
from tasks.artifacts.store import Store
from tasks.run_stage import run_stage
from tests.services.conftest import PASSWORD, UNDISTURBED, Steps, databases, history, training

pytestmark = pytest.mark.services

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "flows" / "tiny.yaml"


@pytest.fixture
def database() -> Iterator[tuple[Server, str]]:
    with databases("runs", "prefect") as found:
        yield found


@pytest.fixture
def store(home: Path, database: tuple[Server, str], monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://{database[1]}/runs")
    return Store.open()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT], ids=["in order", "at once"])
def test_a_restart_amid_a_stage_loses_nothing(
    store: Store, database: tuple[Server, str], number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    server, _ = database

    def event(step: int) -> None:
        if step == 10:
            server.stop(number)
        if step == 40:
            server.start()

    outcome = run_stage(training(event), Steps(), {}, store=store)
    assert history(store, outcome.id) == UNDISTURBED
    assert store.verify(outcome.id) == []
    assert "does not answer" in caplog.text
    assert PASSWORD not in caplog.text
    assert run_stage(training(), Steps(), {}, store=store).status == "reused"


def test_it_may_be_away_when_a_stage_publishes(store: Store, database: tuple[Server, str]) -> None:
    server, _ = database

    def event(step: int) -> None:
        if step == 59:
            server.stop(signal.SIGINT)
            later.start()

    later = threading.Timer(4.0, server.start)
    outcome = run_stage(training(event), Steps(), {}, store=store)
    later.join()
    assert history(store, outcome.id) == UNDISTURBED
    assert store.verify(outcome.id) == []


AT_ONCE = """
import sys
from tasks.run_stage import run_stage
from tasks.artifacts.store import Store
from tests.services.conftest import Steps, training
outcome = run_stage(training(seconds=0.0), Steps(seed=int(sys.argv[1])), {}, store=Store.open())
print(outcome.id, outcome.status)
"""


@pytest.mark.parametrize("homes", [1, 6])
def test_six_processes_start_at_once_on_an_empty_database(
    database: tuple[Server, str], tmp_path: Path, homes: int
) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DPR_", "MLFLOW_"))}
    processes = []
    for number in range(6):
        variables = {
            **inherited,
            "DPR_HOME": str(tmp_path / f"home{number % homes}"),
            "MLFLOW_TRACKING_URI": f"postgresql://{database[1]}/runs",
            "PYTHONPATH": str(ROOT),
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", AT_ONCE, str(number)],
                cwd=ROOT,
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    ended = [(*process.communicate(timeout=300), process.returncode) for process in processes]
    assert [(status, errors) for _, errors, status in ended] == [(0, "")] * 6
    assert len({shown.split()[0] for shown, _, _ in ended}) == 6
    assert {shown.split()[1] for shown, _, _ in ended} == {"ran"}


def dpr(home: Path, database: tuple[Server, str]) -> "subprocess.Popen[str]":
    """The tiny pipeline, with both MLflow and Prefect in PostgreSQL."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("DPR_", "MLFLOW_", "PREFECT_"))
    }
    variables = {
        **inherited,
        "DPR_HOME": str(home),
        "MLFLOW_TRACKING_URI": f"postgresql://{database[1]}/runs",
        "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{database[1]}/prefect",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "flows.cli", "run", str(TINY), "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=variables, text=True, **pipes)  # type: ignore[call-overload,no-any-return]


def ended(process: "subprocess.Popen[str]") -> dict[str, Any]:
    shown, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert PASSWORD not in shown + errors
    document: dict[str, Any] = json.loads(shown)
    return document


def test_a_pipeline_runs_with_prefect_and_mlflow_in_it_and_is_reused(
    database: tuple[Server, str], tmp_path: Path
) -> None:
    first, second = (ended(dpr(tmp_path / "home", database)) for _ in range(2))
    assert {stage["status"] for stage in first["stages"]} == {"ran"}
    assert {stage["status"] for stage in second["stages"]} == {"reused"}
    assert [stage["id"] for stage in second["stages"]] == [stage["id"] for stage in first["stages"]]
