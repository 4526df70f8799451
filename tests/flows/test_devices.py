"""A GPU that is asked for and is not there is told of before any work; what needs none goes on without one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dpr_core.config.base import commented_yaml
from dpr_core.config.imitation import SelfPlayConfig
from dpr_core.config.pipeline import SHARED
from dpr_core.errors import UsageError
from flows import recipes, wiring
from tasks.graph import Node, Planned, preflight
from tests.flows.conftest import TINY

OpenStore = Callable[[Path], Any]
SPIN = "methods={spin: {type: self_play}, w: {changes: [reward.formula=with_value]}}"


@pytest.mark.integration
def test_a_run_is_refused_before_its_first_stage_and_planned_all_the_same(
    tmp_path: Path, open_store: OpenStore, dpr_process: Callable[..., Any]
) -> None:
    home = tmp_path / "home"
    asked = (TINY, "--set", "device=cuda")
    planned = dpr_process("run", *asked, "--plan", home=home, CUDA_VISIBLE_DEVICES="")
    assert planned.status == 0, planned.stderr
    refused = dpr_process("run", *asked, home=home, CUDA_VISIBLE_DEVICES="")
    refused.assert_refused(2, "a GPU is asked for", torch.__version__, "--set device=auto")
    assert open_store(home).records() == []


SMALL = (
    "demo-real",
    "gemma-3-270m",
    "smollm2-135m",
    "smollm2-135m-e2e",
    "smollm2-135m-family",
    "smollm2-135m-gsm8k",
    "smollm2-135m-overoptimised",
)


def _asked_for(*assignments: str, reused: tuple[str, ...] = ()) -> tuple[list[Node], list[Planned]]:
    nodes = wiring.nodes(recipes.load(str(TINY), assignments))
    planned = [Planned(n.name, n.stage, "reuse" if n.name in reused else "run", None, "") for n in nodes]
    return nodes, planned


def test_preflight_looks_at_what_is_to_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    preflight(*_asked_for())
    for one in ("device=cuda", "answer.execution.device=cuda", "sft.execution.device=cuda"):
        with pytest.raises(UsageError, match="a GPU is asked for"):
            preflight(*_asked_for(one))
    preflight(*_asked_for("sft.execution.device=cuda", reused=("sft",)))
    nodes, planned = _asked_for("device=cuda")
    preflight(nodes, planned, [node.name for node in nodes])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    preflight(*_asked_for("device=cuda"))


def test_a_device_reaches_every_stage_and_method_that_has_none_of_its_own(tmp_path: Path) -> None:
    config = recipes.load(str(TINY), ["device=cuda", "reward.execution.device=auto", "sft.execution.threads=2", SPIN])
    devices = {stage: getattr(config, stage).execution.device for stage in SHARED}
    assert devices == {**dict.fromkeys(SHARED, "cuda"), "reward": "auto"}
    assert config.sft.execution.threads == 2
    spin = config.methods["spin"]
    assert isinstance(spin, SelfPlayConfig)
    assert spin.execution.device == "cuda"
    assert config.variants()["w"][0].execution.device == "auto"
    assert config.variants()["w"][1].execution.device == "cuda"
    printed = tmp_path / "printed.yaml"
    printed.write_text(commented_yaml(config))
    assert recipes.load(str(printed)) == config
    again = recipes.load(str(printed), ["device=auto"])
    assert {getattr(again, stage).execution.device for stage in SHARED} == {"auto"}


def test_the_recipes_of_large_backbones_ask_for_a_gpu_and_those_of_small_ones_do_not() -> None:
    for name in recipes.names():
        small = recipes.load(name).backbone.type == "lab" or name in SMALL
        config, wanted = recipes.load(name), "auto" if small else "cuda"
        assert {getattr(config, stage).execution.device for stage in SHARED} == {wanted}, name
