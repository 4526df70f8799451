"""A stage of the tiny pipeline again, by two processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flows.wiring import nodes
from tasks.artifacts.store import Store
from tasks.run_stage import StageJob
from tests.flows.conftest import TINY

pytestmark = pytest.mark.integration


@pytest.mark.slow
def test_two_processes_train_the_same_policy_in_a_run_of_its_own(
    made: Any, dpr_process: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = made.id("reinforce")
    assignments = [f"execution.launch.{field}" for field in ("processes=2", "strategy=fsdp")]
    sets = [word for assignment in assignments for word in ("--set", assignment)]
    [reused] = dpr_process("rerun", before, *sets, "--json", home=made.home).json["stages"]
    assert (reused["id"], reused["status"]) == (before, "reused"), "by how many it is done is no part of it"
    done = dpr_process("rerun", before, *sets, "--force", "--json", home=made.home)
    assert done.status == 0, done.stderr
    [entry] = done.json["stages"]
    assert (entry["stage"], entry["status"], entry["id"] != before) == ("reinforce", "ran", True)
    monkeypatch.setenv("DPR_HOME", str(made.home))
    store = Store.open()
    one, two = (store.fetch(run_id) for run_id in (before, entry["id"]))
    assert one.config == two.config
    torch.testing.assert_close(_weights(two.path), _weights(one.path), rtol=0, atol=1e-6)
    # The system's own are sampled every few seconds: a short run has none.
    logged = [{name for name in store.metrics(each.id) if not name.startswith("system/")} for each in (two, one)]
    assert logged[0] == logged[1]


def test_a_stage_of_a_recipe_is_a_job_once_its_inputs_are_made(
    dpr: Callable[..., Any],
    tiny: Callable[..., Any],
    run_graph: Callable[..., Any],
    open_store: Callable[[Path], Store],
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    dpr("job", TINY, "sft", home=home).assert_refused(2, "which is not made yet; make it first")
    dpr("job", TINY, "stf", home=home).assert_refused(2, "has no stage 'stf'; its stages: ")
    inputs = [node for node in nodes(tiny()) if node.name in ("backbone", "subsample")]
    made = run_graph(open_store(home), inputs)
    job = StageJob.of_json(dpr("job", TINY, "sft", home=home).stdout)
    assert (job.stage, job.name) == ("sft", "sft")
    assert job.inputs == {"backbone": made["backbone"].id, "data": made["subsample"].id}


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "policy" / "model.safetensors")
