import math
from typing import Any

import pytest

from dpr_core.errors import UsageError
from dpr_core.evaluation.official import alpaca_eval, lima
from dpr_core.evaluation.rows import Row


def annotation(instruction: str, preference: Any, **changes: Any) -> Row:
    return {
        "instruction": instruction,
        "output_1": "base",
        "generator_1": "gpt4",
        "output_2": f"to {instruction}",
        "generator_2": "m",
        "annotator": "a",
        "preference": preference,
    } | changes


INSTRUCTIONS = [{"instruction": name} for name in "abcd"]
ROWS = [annotation("a", 2), annotation("b", 1.25), annotation("c", 1.5), annotation("d", 1)]


def test_the_official_numbers() -> None:
    score = alpaca_eval.score(ROWS, [], INSTRUCTIONS)["m"]
    wins = [1, 0.25, 0.5, 0]
    mean = sum(wins) / 4
    deviation = math.sqrt(sum((w - mean) ** 2 for w in wins) / 3)
    assert score.official == {
        "win_rate": pytest.approx(43.75),
        "standard_error": pytest.approx(100 * deviation / 2),
        "discrete_win_rate": pytest.approx(100 * (1 + 0 + 0.5 + 0) / 4),
        "n_wins": 1,
        "n_wins_base": 2,
        "n_draws": 1,
        "n_total": 4,
    }
    assert score.paper["win_rate"] == pytest.approx(37.5)
    assert (score.n, score.unscored, score.warnings) == (4, 0, [])
    assert (score.paper["characters"], score.paper["baseline_characters"]) == (4.0, 4.0)


def test_a_rate_for_each_dataset() -> None:
    rows = [row | {"dataset": name} for row, name in zip(ROWS, ("x", "x", "y", "y"), strict=True)]
    by_category = alpaca_eval.score(rows, [], INSTRUCTIONS)["m"].paper["by_category"]
    assert {name: (each["mean"], each["prompts"]) for name, each in by_category.items()} == {
        "x": (50.0, 2),
        "y": (25.0, 2),
    }


@pytest.mark.parametrize("preference", [None, "", float("nan"), 3, 0.5, "none"])
def test_what_is_no_preference_leaves_the_denominator(preference: Any) -> None:
    score = alpaca_eval.score([*ROWS, annotation("e", preference)], [], [])["m"]
    assert (score.official["n_total"], score.n, score.unscored) == (4, 5, 1)
    assert any("1 rows have no valid preference ('e')" in line for line in score.warnings)


def test_the_draw_of_older_files_is_zero() -> None:
    assert alpaca_eval.score([annotation("a", 0)], [], [])["m"].official["win_rate"] == 50.0
    assert alpaca_eval.preference({"preference": "2"}) == 2.0


@pytest.mark.parametrize(
    ("rows", "answers", "expected"),
    [
        ([*ROWS, ROWS[0]], [], "judged more than once"),
        (ROWS[:2], [], "2 of 4 instructions were judged"),
        ([annotation("z", 1), *ROWS], [], "unknown instructions ('z')"),
        ([annotation("a", 1, output_2=" "), *ROWS[1:]], [], "answers are empty"),
        ([annotation("a", 1, generator_1="x"), *ROWS[1:]], [], "2 baselines are mixed"),
        ([annotation("a", 1, annotator="x"), *ROWS[1:]], [], "2 annotators are mixed"),
        (ROWS, [{"instruction": "a", "output": "new", "generator": "m"}], "no longer the current ones"),
        (ROWS, [{"instruction": "a", "output": "new", "generator": "x"}], "not this model's but those of x"),
    ],
)
def test_what_is_wrong_is_said(rows: list[Row], answers: list[Row], expected: str) -> None:
    assert any(expected in line for line in alpaca_eval.score(rows, answers, INSTRUCTIONS)["m"].warnings)


def test_answers_that_were_judged_as_they_are_raise_no_warning() -> None:
    outputs = [{"instruction": name, "output": f"to {name}", "generator": "m"} for name in "abcd"]
    assert alpaca_eval.score(ROWS, outputs, INSTRUCTIONS)["m"].warnings == []


def test_another_format_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="not AlpacaEval annotations: row 1 has no 'generator_2'"):
        alpaca_eval.score([{"instruction": "a", "preference": 1}], [], [])


def test_lima_has_no_official_score() -> None:
    score = lima.score(ROWS, [], [])["m"]
    assert score.official == {}
    assert score.paper["win_rate"] == pytest.approx(37.5)
    assert score.warnings == ["4 of 300 instructions were judged"]


def test_lima_reads_the_games_of_a_judge_artifact() -> None:
    games = [
        {"question_id": "1", "candidate_first": True, "score": 1.0},
        {"question_id": "1", "candidate_first": False, "score": 0.5},
        {"question_id": "2", "candidate_first": True, "score": None},
    ]
    score = lima.score(games, [], [])["candidate"]
    assert score.paper["win_rate"] == 75.0
    assert (score.n, score.unscored) == (2, 1)
    assert score.warnings[:2] == ["1 prompts lack one of two games (2)", "1 prompts have unreadable verdicts (2)"]
