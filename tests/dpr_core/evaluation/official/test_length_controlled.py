import json
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dpr_core.errors import DensePathError, UsageError
from dpr_core.evaluation.official import FORMATS
from dpr_core.evaluation.official.length_controlled import add_length_controlled
from flows.cli.__main__ import app

PACKAGE = pytest.mark.skipif(
    None in (find_spec("alpaca_eval"), find_spec("pkg_resources")), reason="the extra `official` is not installed"
)
QUESTIONS = [{"instruction": f"Do {i}."} for i in range(805)]


def annotations(count: int = 805) -> list[dict[str, Any]]:
    """Of a model that wins more often where it writes more."""
    draw = random.Random(0)
    rows = []
    for question in QUESTIONS[:count]:
        length = draw.randint(5, 400)
        rows.append(
            {
                **question,
                "output_1": "x" * 200,
                "generator_1": "gpt4_1106_preview",
                "output_2": "y" * length,
                "generator_2": "mine",
                "annotator": "weighted_alpaca_eval_gpt4_turbo",
                "preference": min(2.0, max(1.0, 1 + length / 400 + draw.uniform(-0.2, 0.2))),
            }
        )
    return rows


def scored(rows: list[dict[str, Any]], questions: list[dict[str, Any]]) -> dict[str, Any]:
    scores = FORMATS["alpaca-eval"](rows, [], questions)
    add_length_controlled(scores, rows, questions)
    return scores["mine"].official


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub with a made-up df_gamed.csv, and no network."""
    folder = tmp_path / "datasets--tatsu-lab--alpaca_eval"
    (folder / "snapshots" / "0" / "x").parent.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0")
    draw = random.Random(1)
    lines = ["model,index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline"]
    difficulty = [draw.gauss(0, 1) for _ in QUESTIONS]
    for model in ("verbose", "concise"):
        for i, hard in enumerate(difficulty):
            lines.append(f"{model},{i},{draw.random():.4f},{draw.gauss(0, 1):.4f},{hard:.4f},False")
    (folder / "snapshots" / "0" / "df_gamed.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


@pytest.mark.slow
@PACKAGE
def test_it_is_what_the_package_computes_in_whatever_order_the_rows_stand(hub: Path) -> None:
    import pandas as pd
    from alpaca_eval.metrics import get_length_controlled_winrate

    rows = annotations()
    theirs = get_length_controlled_winrate(pd.DataFrame(rows), save_weights_dir=None)
    ours = scored(rows, [])
    assert ours["length_controlled_win_rate"] == theirs["length_controlled_winrate"]
    assert ours["length_controlled_standard_error"] == theirs["lc_standard_error"]
    assert ours["win_rate"] == pytest.approx(theirs["win_rate"], abs=1e-9)
    assert abs(ours["length_controlled_win_rate"] - ours["win_rate"]) > 0.1
    shuffled = random.Random(2).sample(rows, len(rows))
    again = scored(shuffled, QUESTIONS)
    assert again["length_controlled_win_rate"] == pytest.approx(ours["length_controlled_win_rate"], abs=0.05)
    few = scored(annotations(100), QUESTIONS)
    assert 0 < few["length_controlled_win_rate"] < 100
    (hub / "snapshots" / "0" / "df_gamed.csv").unlink()
    with pytest.raises(DensePathError, match=r"needs df_gamed.csv of the hub's dataset"):
        scored(rows, [])


def test_rows_whose_place_is_not_known_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpr_core.evaluation.official.length_controlled.find_spec", lambda name: object())
    with pytest.raises(UsageError, match=r"which of the 805 instructions each row is of: give them"):
        scored(annotations(10), [])


def test_without_the_package_or_for_another_benchmark_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpr_core.evaluation.official.length_controlled.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'dense-path\[official\]'"):
        scored(annotations(), [])
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"question_id": 81, "model": "m", "turn": 1, "score": 8}))
    command = ["benchmark", "score", "--format", "mt-bench", str(file), "--length-controlled"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code != 0
    assert "--length-controlled is AlpacaEval's" in result.output
