from typing import Any

import pytest

from dpr_core.errors import UsageError
from dpr_core.evaluation.official import mt_bench
from dpr_core.evaluation.rows import Row

QUESTIONS: list[Row] = [
    {"question_id": 81, "category": "writing", "turns": ["Write a post.", "Rewrite it."]},
    {"question_id": 82, "category": "math", "turns": ["Add 1 and 2.", "Now double it."]},
]


def judgment(question: int, turn: int, score: float, **changes: Any) -> Row:
    asked = {row["question_id"]: row["turns"] for row in QUESTIONS}[question]
    prompt = " ".join(f"{text} answer {question}-{i}" for i, text in enumerate(asked[:turn], start=1))
    return {
        "question_id": question,
        "model": "m",
        "judge": ["gpt-4", "single-v1"],
        "turn": turn,
        "score": score,
        "user_prompt": prompt,
        "judgment": f"Good. [[{score}]]" if score >= 0 else "I cannot say.",
    } | changes


def answer(question: int, first: str, second: str) -> Row:
    return {"question_id": question, "model_id": "m", "choices": [{"index": 0, "turns": [first, second]}]}


WHOLE = [judgment(81, 1, 8), judgment(81, 2, 6), judgment(82, 1, 3), judgment(82, 2, 4)]
ANSWERS = [answer(q, f"answer {q}-1", f"answer {q}-2") for q in (81, 82)]


def test_turns_average_and_categories() -> None:
    score = mt_bench.score(WHOLE, ANSWERS, QUESTIONS)["m"]
    assert score.official == {
        "turn1": 5.5,
        "turn2": 5.0,
        "average": 5.25,
        "categories": {"math": 3.5, "writing": 7.0},
    }
    assert (score.n, score.unscored, score.warnings) == (4, 0, [])
    low, high = score.paper["interval"]
    assert 3.5 <= low <= 5.25 <= high <= 7.0
    assert score.paper["by_category"]["math"] == {"mean": 3.5, "low": None, "high": None, "prompts": 1}


def test_an_unreadable_rating_leaves_the_mean_and_is_counted() -> None:
    score = mt_bench.score([*WHOLE[:3], judgment(82, 2, -1)], [], QUESTIONS)["m"]
    assert score.official["turn2"] == 6.0
    assert score.official["average"] == pytest.approx(17 / 3)
    assert (score.n, score.unscored) == (4, 1)
    assert score.warnings == ["1 ratings could not be read (82 turn 2)"]


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_a_row_without_a_score_is_unreadable(nothing: float | None) -> None:
    score = mt_bench.score([*WHOLE[:3], judgment(82, 2, 4) | {"score": nothing, "judgment": ""}], [], QUESTIONS)["m"]
    assert (score.official["turn2"], score.n, score.unscored) == (6.0, 4, 1)
    assert score.warnings == ["1 ratings could not be read (82 turn 2)"]


def test_the_official_mean_counts_a_repeated_row_and_the_median_does_not_double_it() -> None:
    score = mt_bench.score([*WHOLE, judgment(81, 1, 2), judgment(81, 1, 9)], [], QUESTIONS)["m"]
    assert score.official["turn1"] == pytest.approx((8 + 3 + 2 + 9) / 4)
    assert score.paper["median_of_judgings"] == pytest.approx((8 + 6 + 3 + 4) / 4)
    assert "questions were judged more than once" in score.warnings[0]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"score": 11, "judgment": "[[11]]"}, "outside 1 to 10"),
        ({"judgment": "Worse than I thought. [[2]]"}, "not the rating that the judge wrote"),
        ({"judgment": "$ERROR$", "score": -1}, "failed requests"),
        ({"user_prompt": "Write a post. $ERROR$"}, "judged answers are failed requests"),
        ({"judge": ["other", "single-v1"]}, "2 judges are mixed in one mean (gpt-4, other)"),
        ({"user_prompt": "Add 1 and 2. answer 81-1"}, "another question than the one of their id"),
        ({"user_prompt": "Write a post. an older answer"}, "no longer the current ones"),
        ({"question_id": 99}, "unknown questions"),
    ],
)
def test_what_is_wrong_is_said(change: dict[str, Any], expected: str) -> None:
    rows = [judgment(81, 1, 8) | change, *WHOLE[1:]]
    assert any(expected in line for line in mt_bench.score(rows, ANSWERS, QUESTIONS)["m"].warnings)


@pytest.mark.parametrize(
    ("judged", "is_current"),
    [
        ("answer 81-1", True),
        ("  answer 81-1  \n", True),
        ("Step 1:\nanswer 81-1\nanswer 81-2", False),
        ("another answer", False),
    ],
)
def test_a_line_of_an_answer_or_of_the_reference_is_not_the_answer(judged: str, is_current: bool) -> None:
    prompt = (
        "[Question]\nWrite a post.\n\n[The Start of Reference Answer]\nanswer 81-1\n[The End of Reference Answer]\n\n"
        f"[The Start of Assistant's Answer]\n{judged}\n[The End of Assistant's Answer]"
    )
    (score,) = mt_bench.score([judgment(81, 1, 8) | {"user_prompt": prompt}], ANSWERS, QUESTIONS).values()
    assert not any("another question" in line for line in score.warnings)
    assert any("no longer the current ones" in line for line in score.warnings) != is_current


def test_partial_coverage_is_said() -> None:
    assert mt_bench.score(WHOLE[:3], [], QUESTIONS)["m"].warnings == ["turn 2: 1 of 2 questions were judged"]
    assert mt_bench.score(WHOLE, [], [])["m"].warnings == [
        "turn 1: 2 of 80 questions were judged",
        "turn 2: 2 of 80 questions were judged",
    ]


def test_answers_of_another_model_are_not_compared() -> None:
    others = [row | {"model_id": "other"} for row in ANSWERS]
    (line,) = mt_bench.score(WHOLE, others, QUESTIONS)["m"].warnings
    assert "not this model's but those of other" in line


@pytest.mark.parametrize(
    ("text", "rating"),
    [("Rating: [[7]]", 7), ("[[7.5]] and [[3]]", 7.5), ("[4]", 4), ("[4] but [[5]]", 5), ("seven", -1), ("[[a]]", -1)],
)
def test_ratings_are_read_as_the_official_script_reads_them(text: str, rating: float) -> None:
    assert mt_bench.read_rating(text) == rating


def test_pairwise_verdicts_that_disagree_are_ties() -> None:
    def row(question: int, first: str, second: str) -> Row:
        return {"question_id": question, "model_1": "a", "model_2": "b", "g1_winner": first, "g2_winner": second}

    rows = [
        row(1, "model_1", "model_1"),
        row(2, "model_1", "model_2"),
        row(3, "tie", "model_2"),
        row(4, "model_2", "model_2"),
        row(5, "error", "model_1"),
    ]
    scores = mt_bench.score(rows, [], [])
    assert scores["a"].official == {"win_rate": 0.25, "loss_rate": 0.25, "win_rate_adjusted": 0.5}
    assert (scores["a"].n, scores["a"].unscored) == (5, 1)
    assert scores["a"].paper["win_rate"] == pytest.approx(100 * (1 + 0.5 + 0.25 + 0) / 4)
    assert scores["b"].paper["win_rate"] == pytest.approx(100 * (0 + 0.5 + 0.75 + 1) / 4)


def test_another_format_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="not MT-Bench judgments: row 1 has no 'question_id'"):
        mt_bench.score([{"model": "m"}], [], [])
    with pytest.raises(UsageError, match="question 81: `score` is 'high', not a number"):
        mt_bench.score([judgment(81, 1, 8) | {"score": "high"}], [], [])
    with pytest.raises(UsageError, match="`user_prompt` of row 1 is int"):
        mt_bench.score([judgment(81, 1, 8) | {"user_prompt": 1}], [], [])
    with pytest.raises(UsageError, match="answer"):
        mt_bench.score(WHOLE, [ANSWERS[0] | {"choices": []}], [])
    with pytest.raises(UsageError, match="question 81 stands twice"):
        mt_bench.score(WHOLE, [], [QUESTIONS[0], QUESTIONS[0]])
