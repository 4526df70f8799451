import json
from itertools import product
from pathlib import Path
from statistics import fmean

import pytest

from dpr_core.evaluation.official import mt_bench
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.rate import Rating, Ratings, Turn, as_rows, interval, summarise
from dpr_core.evaluation.rows import read_rows

WRITING = Question(id="81", turns=("Write.", "Rewrite."), category="writing")
MATH = Question(id="111", turns=("Add.", "Double."), category="math")


def rated(scores: dict[tuple[Question, int], list[float | None]]) -> list[tuple[Turn, Rating]]:
    """For each question and turn, the scores of its judgings."""
    return [
        (
            Turn(question, ("text",) * number, judging),
            Rating(score, f"[[{score}]]" if score else "?", "t", "shown"),
        )
        for (question, number), values in scores.items()
        for judging, score in enumerate(values, start=1)
    ]


def test_scores_by_hand() -> None:
    result = summarise(rated({(WRITING, 1): [8], (WRITING, 2): [6], (MATH, 1): [3], (MATH, 2): [None]}), 200, seed=0)
    assert (result.turn1, result.turn2) == (5.5, 6.0)
    assert result.average == pytest.approx(17 / 3)
    assert result.categories == {"math": 3.0, "writing": 7.0}
    assert {name: (each["mean"], each["prompts"]) for name, each in result.by_category.items()} == {
        "math": (3.0, 1),
        "writing": (7.0, 1),
    }
    assert (result.n, result.unscored, result.unscored_share, result.questions, result.judgings) == (4, 1, 0.25, 2, 1)


def test_the_median_is_of_the_judgings_of_a_turn_and_the_mean_of_all_of_them() -> None:
    result = summarise(
        rated({(WRITING, 1): [1, 8, 9], (WRITING, 2): [6, 6, 6], (MATH, 1): [2, None, 5], (MATH, 2): [None] * 3}),
        200,
        seed=0,
    )
    # Medians: 8; 6; of 2 and 5, 3.5; none.
    assert result.median_of_judgings == pytest.approx((8 + 6 + 3.5) / 3)
    assert result.average == pytest.approx((1 + 8 + 9 + 18 + 2 + 5) / 8)
    assert (result.judgings, result.n, result.unscored) == (3, 12, 4)


def test_nothing_readable_is_no_score() -> None:
    result = summarise(rated({(WRITING, 1): [None], (MATH, 1): [None]}), 200, seed=0)
    assert (result.turn1, result.average, result.median_of_judgings, result.low, result.high) == (None,) * 5
    assert result.unscored_share == 1.0
    assert set(result.as_metrics()) == {"rate/judgings", "rate/questions", "rate/n", "rate/unscored"}


def test_the_interval_draws_all_ratings_of_a_question_together() -> None:
    groups = [[8.0, 6.0], [3.0], [9.0, 10.0, 10.0]]
    # All 27 draws of three questions, each as likely: the mean of all ratings that were drawn.
    means = sorted(fmean(value for group in drawn for value in group) for drawn in product(groups, repeat=3))
    found = interval([*groups, []], samples=200_000, seed=0)
    assert found is not None
    assert found == pytest.approx((means[0], means[-1]))
    assert (means[0], means[-1]) == pytest.approx((3.0, 29 / 3))
    assert interval([[1.0, 9.0]], 200, 0) is None
    same = interval([[4.0, 6.0]] * 5, 200, 0)
    assert same == (5.0, 5.0)


def test_the_rows_are_fastchats_and_score_to_the_same_numbers(tmp_path: Path) -> None:
    given = rated({(WRITING, 1): [8, 7.5], (WRITING, 2): [6, None], (MATH, 1): [3, 2], (MATH, 2): [10, 9]})
    rows = as_rows(given, "mine", "gpt-4o")
    assert rows[1] == {
        "question_id": 81,
        "model": "mine",
        "judge": ["gpt-4o", "t"],
        "user_prompt": "shown",
        "judgment": "[[7.5]]",
        "score": 7.5,
        "turn": 1,
        "judging": 2,
        "details": {},
    }
    assert [json.dumps(row["score"]) for row in rows[:4]] == ["8", "7.5", "6", "-1"]
    file = tmp_path / "gpt-4o_single.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{"question_id": int(q.id), "turns": list(q.turns), "category": q.category} for q in (WRITING, MATH)]
    found = mt_bench.score(read_rows(file), [], asked)["mine"]
    result = summarise(given, 200, seed=0)
    assert found.official == {
        "turn1": result.turn1,
        "turn2": result.turn2,
        "average": result.average,
        "categories": result.categories,
    }
    assert found.official["turn1"] == pytest.approx((8 + 7.5 + 3 + 2) / 4)
    assert found.paper["median_of_judgings"] == result.median_of_judgings == pytest.approx((7.75 + 6 + 2.5 + 9.5) / 4)


def test_ratings_survive_json() -> None:
    result = summarise(rated({(WRITING, 1): [8], (MATH, 1): [3]}), 200, seed=0)
    assert Ratings(**json.loads(json.dumps(result.as_dict()))) == result
