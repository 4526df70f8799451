import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpr_core.models.checkpoints import save
from perf import precision


def test_both_tables_are_made(
    tiny: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    save(*tiny("llama"), tmp_path / "model")
    rows = [{"question": f"Start at {i}.", "response": f"The answer is {i}."} for i in range(80)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = [str(tmp_path / name) for name in ("model", "rows.jsonl", "rows.jsonl")]
    monkeypatch.setattr("sys.argv", ["precision.py", *given])
    monkeypatch.setattr(precision, "STEPS", 2)
    precision.main()
    steps, rewards = capsys.readouterr().out.split("\n\n")
    assert [line.split(" | ")[1] for line in steps.splitlines()[2:]] == ["5e-07", "5e-06", "2e-05"] * 2 + ["4e-06"]
    in_float32, in_bfloat16 = (line.split(" | ") for line in rewards.splitlines()[2:])
    assert in_float32[2] == "0.000"
    assert float(in_bfloat16[2]) > 0
