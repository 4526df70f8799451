"""A stage that trains for some seconds, in a home of its own, with the store wherever a test has one."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import tasks.registry
from dpr_core.config.base import StageConfig
from tasks.artifacts.store import Store
from tasks.running.stage import Stage
from tasks.running.workspace import Workspace

STEPS = 60


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


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DPR_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("tasks.artifacts.metric_buffer.FLUSH_SECONDS", 0.1)
    monkeypatch.setattr(tasks.registry, "STAGES", {"training": training()})
    return tmp_path / "home"
