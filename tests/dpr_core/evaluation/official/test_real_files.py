"""On real files of the official formats, where they stand beside the repository: `shared/bench`."""

import json
from pathlib import Path

import pandas as pd
import pytest

from dpr_core.evaluation.official import FORMATS
from dpr_core.evaluation.rows import read_rows

FILES = Path(__file__).parents[5] / "shared" / "bench"
RATINGS = FILES / "mt_bench/model_judgment/orpo_mix_gpt-4_single.jsonl"
BATTLES = FILES / "arena_hard/v0.1/model_judgment/gpt-4-1106__llama-3.1-8b-instruct.jsonl"
ALPACA = FILES / "alpaca_eval/results/alpaca-7b"

pytestmark = pytest.mark.skipif(not FILES.is_dir(), reason="the official files are not beside the repository")


def test_mt_bench_agrees_with_the_official_grouping() -> None:
    frame = pd.read_json(RATINGS, lines=True)[["model", "score", "turn"]]
    frame = frame[frame["score"] != -1]
    turns = frame.groupby(["model", "turn"])["score"].mean()
    whole = frame.groupby("model")["score"].mean()
    scores = FORMATS["mt-bench"](read_rows(RATINGS), [], read_rows(FILES / "mt_bench/question.jsonl"))
    assert len(scores) == 2
    for model, score in scores.items():
        assert score.official["turn1"] == pytest.approx(turns[model, 1], abs=1e-9)
        assert score.official["turn2"] == pytest.approx(turns[model, 2], abs=1e-9)
        assert score.official["average"] == pytest.approx(whole[model], abs=1e-9)
        assert score.warnings == []


def test_arena_hard_agrees_with_weighted_counts() -> None:
    points = {"A>>B": [0, 0, 0], "A>B": [0], "A=B": [0.5], "B>A": [1], "B>>A": [1, 1, 1]}
    values = []
    for row in map(json.loads, BATTLES.read_text().splitlines()):
        first, second = (game["score"] for game in row["games"])
        values += points.get(first, []) + [1 - p for p in points.get(second, [])]
    (score,) = FORMATS["arena-hard"](
        read_rows(BATTLES), [], read_rows(FILES / "arena_hard/v0.1/question_schema1.jsonl")
    ).values()
    assert score.official["score_v0.1"] == pytest.approx(100 * sum(values) / len(values), abs=1e-9)
    assert any("82 of 500 questions were judged" in line for line in score.warnings)


@pytest.mark.parametrize("name", ["annotations_ae1", "annotations_ae2"])
def test_alpaca_eval_agrees_with_pandas(name: str) -> None:
    rows = read_rows(ALPACA / f"{name}.json")
    wins = pd.Series([row["preference"] for row in rows]).astype(float).replace({0.0: 1.5}) - 1
    score = FORMATS["alpaca-eval"](rows, read_rows(ALPACA / "model_outputs.json"), [])["alpaca-7b"]
    assert score.official["win_rate"] == pytest.approx(100 * wins.mean(), abs=1e-9)
    assert score.official["standard_error"] == pytest.approx(100 * wins.sem(), abs=1e-9)
    assert score.official["n_total"] == 805
    assert score.warnings == []
