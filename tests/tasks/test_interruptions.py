"""What an end, wherever it comes, must not lose, leave behind or change."""

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tasks.artifacts.stage_run
from dpr_core.config.base import StageConfig
from dpr_core.config.execution import ExecutionConfig
from dpr_core.errors import DensePathError
from tasks.artifacts.store import Store
from tasks.run_stage import Outcome, run_stage
from tasks.running.shutdown import Terminated, graceful_shutdown
from tasks.running.stage import Stage
from tasks.running.stage_workdir import StageWorkdir
from tasks.running.workspace import Workspace

Make = Callable[..., Outcome]


def test_an_end_that_was_put_off_until_the_block_is_over_is_taken_then() -> None:
    done = []
    try:
        with graceful_shutdown() as shutdown:
            shutdown.safe_point()
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("the rest of the stage")
    except Terminated:
        done.append("terminated")
    assert done == ["the rest of the stage", "terminated"]
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_stage_that_is_published_before_its_end_is_taken_is_finished(store: Store, toys: dict[str, Stage]) -> None:
    def body(config: Any, work: Workspace) -> dict[str, float]:
        work.checkpoint(1, dict)
        os.kill(os.getpid(), signal.SIGTERM)
        (work.output / "value.json").write_text("1")
        return {}

    stage = dataclasses.replace(toys["number"], body=body)
    with pytest.raises(Terminated):
        run_stage(stage, stage.config(), {}, store=store)
    assert [record.status for record in store.records()] == ["FINISHED"]


def test_what_a_finished_attempt_left_in_its_workdir_goes_at_the_next_request(
    store: Store, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(StageWorkdir, "clear", lambda workdir: None)
        made = make("number")
    (left,) = (store.home / "work").iterdir()
    assert make("number").status == "reused"
    assert not left.exists()

    left.mkdir()
    (left / "ATTEMPT").write_text("0" * 32)
    assert make("number").id == made.id
    assert left.exists()


def test_an_attempt_that_goes_on_to_its_end_gives_no_reason_for_one(store: Store, toys: dict[str, Stage]) -> None:
    def fails(config: Any, work: Workspace) -> dict[str, float]:
        work._workdir.save_state(1, 1, {})
        raise DensePathError("no luck")

    stage = toys["number"]
    with pytest.raises(DensePathError, match="no luck"):
        run_stage(dataclasses.replace(stage, body=fails), stage.config(), {}, store=store)
    (before,) = store.records()
    assert "no luck" in before.reason
    assert run_stage(stage, stage.config(), {}, store=store).id == before.id
    assert store.record(before.id).reason == ""


def test_everything_is_on_the_disk_before_the_digest_says_that_it_is_there(
    store: Store, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    at_digest: list[set[str]] = []
    set_tag = store._client.set_tag

    def watched(run_id: str, name: str, value: str) -> None:
        if name == "dpr.digest":
            root = store.home / "artifacts" / run_id / "artifacts"
            at_digest.append({path.relative_to(root).as_posix() for path in synced})
        set_tag(run_id, name, value)

    monkeypatch.setattr(tasks.artifacts.stage_run, "sync", synced.append)
    monkeypatch.setattr(store._client, "set_tag", watched, raising=False)
    make("number")
    assert at_digest == [
        {".", "MANIFEST.json", "output", "output/deep", "output/deep/value.json", "output/weights.bin"}
    ]


def test_that_an_attempt_cannot_be_ended_does_not_hide_why_it_failed(
    store: Store, toys: dict[str, Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(config: Any, work: Workspace) -> dict[str, float]:
        raise DensePathError("the real reason")

    def full(*args: Any, **named: Any) -> None:
        raise OSError("no room for the metrics either")

    monkeypatch.setattr(tasks.artifacts.stage_run.StageRun, "end", full)
    stage = toys["number"]
    with pytest.raises(DensePathError, match="the real reason"):
        run_stage(dataclasses.replace(stage, body=fails), stage.config(), {}, store=store)


class Drawn(StageConfig):
    execution: ExecutionConfig = ExecutionConfig()


def test_what_torch_drew_before_a_stage_changes_nothing_in_it(store: Store) -> None:
    """Dropout draws from torch's own generator, and the stages of a pipeline share a process, or do not."""

    def body(config: Any, work: Workspace) -> dict[str, float]:
        (work.output / "drawn.json").write_text(json.dumps(torch.rand(3).tolist()))
        return {}

    stage = Stage("number", 1, Drawn, body, lambda config: "Drawn.")

    def drawn(seed: int) -> str | None:
        shutil.rmtree(store.home / "artifacts")
        (store.home / "artifacts").mkdir()
        return store.record(run_stage(stage, Drawn(seed=seed), {}, store=store).id).digest

    first, other = drawn(0), drawn(1)
    torch.rand(5)
    assert drawn(0) == first != other
