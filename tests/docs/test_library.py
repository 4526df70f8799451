"""The Python of the page on the library runs as it stands there."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from dpr_core.models.checkpoints import save
from tests.conftest import TinyModel
from tests.docs.test_docs import ROOT, blocks

PAGE = ROOT / "docs" / "library.md"


@pytest.mark.slow
@pytest.mark.integration
def test_the_python_of_the_page_runs(tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, name in enumerate(("sft", "reference")):
        save(*tiny("llama", seed=seed), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    names: dict[str, Any] = {}
    runnable = [block for block in blocks(PAGE) if block.language == "python"]
    for block in runnable:
        if "from trl" in block.text and find_spec("trl") is None:
            pytest.skip("TRL is not installed")
        exec(compile(block.text, block.where, "exec"), names)
    assert len(runnable) == 2
    assert len(names["scored"]) == 2
    assert "<!doctype html>" in Path("credit.html").read_text(encoding="utf-8")
    assert names["trainer"].state.global_step == 2
