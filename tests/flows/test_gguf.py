from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dpr_core.config.model import LabBackboneConfig, PretrainedBackboneConfig
from dpr_core.lab.backbone import untrained
from dpr_core.models.checkpoints import load_backbone
from flows import recipes, wiring
from tests.gguf_writer import write_gguf

TINY = str(Path(__file__).with_name("tiny.yaml"))


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    file = tmp_path / "weights" / "tiny.gguf"
    file.parent.mkdir()
    write_gguf(file, *untrained(LabBackboneConfig(width=16, layers=1, heads=2, feed_forward=16)))
    return file


@pytest.mark.slow
@pytest.mark.integration
def test_sft_starts_from_a_gguf_file_and_is_reused_while_that_stays_as_it_is(
    gguf: Path, tmp_path: Path, dpr: Callable[..., Any], open_store: Callable[..., Any], run_graph: Any
) -> None:
    backbone = f"{{type: pretrained, name: {gguf.parent}, gguf_file: tiny.gguf, dtype: float32}}"
    settings = [f"backbone={backbone}", "evaluation.benchmarks={}"]
    store = open_store(tmp_path / "home")
    nodes = [node for node in wiring.nodes(recipes.load(TINY, settings)) if node.stage in ("subsample", "sft")]
    assert run_graph(store, nodes)["sft"].status == "ran"
    (gguf.parent / "another.gguf").write_bytes(b"of no account")
    assert run_graph(store, nodes)["sft"].status == "reused"
    gguf.write_bytes(gguf.read_bytes() + b"\0")
    assert run_graph(store, nodes)["sft"].status == "ran"
    changed = [word for setting in [*settings, "reward.reference=0"] for word in ("--set", setting)]
    dpr("run", TINY, *changed, "--plan").assert_refused(2, "read from safetensors", "dpr backbone")


@pytest.mark.integration
def test_a_gguf_file_is_written_as_a_folder(gguf: Path, tmp_path: Path, dpr: Callable[..., Any]) -> None:
    written = dpr("backbone", gguf, tmp_path / "folder", "--json")
    assert written.json == {"folder": str(tmp_path / "folder"), "model": str(gguf)}
    one, _ = load_backbone(PretrainedBackboneConfig(name=str(gguf.parent), gguf_file=gguf.name, dtype="float32"))
    other, _ = load_backbone(PretrainedBackboneConfig(name=str(tmp_path / "folder"), dtype="float32"))
    weights = dict(other.named_parameters())
    assert all(torch.equal(weight, weights[name]) for name, weight in one.named_parameters())
    dpr("backbone", gguf, tmp_path / "folder").assert_refused(2, "is there already")
    dpr("backbone", tmp_path / "none.gguf", tmp_path / "new").assert_refused(2, "there is no file")
