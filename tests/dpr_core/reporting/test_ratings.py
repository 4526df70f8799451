from collections.abc import Callable
from dataclasses import replace

from dpr_core.evaluation.rate import Ratings
from dpr_core.reporting.judgments import JudgedAnswers
from dpr_core.reporting.sections import RatedAnswers, categories_section, ratings_section, ratings_table

RATINGS = Ratings(
    turn1=8.0,
    turn2=6.25,
    average=7.125,
    low=6.5,
    high=7.75,
    categories={},
    median_of_judgings=7.5,
    judgings=1,
    questions=80,
    n=160,
    unscored=3,
)
ROWS = [
    RatedAnswers("SFT", "mt_bench", "gpt-4o", RATINGS),
    RatedAnswers("DPR", "mt_bench", "gpt-4o", replace(RATINGS, turn2=None, low=None, high=None)),
]


def test_a_row_for_each_policy() -> None:
    shown = ratings_table(ROWS)
    assert shown.headings == [
        "policy", "benchmark", "rated by", "turn 1", "turn 2", "average", "unreadable", "questions",
    ]  # fmt: skip
    assert shown.rows == [
        ["SFT", "mt_bench", "gpt-4o", "8.00", "6.25", "7.12 [6.50, 7.75]", "3 of 160", "80"],
        ["DPR", "mt_bench", "gpt-4o", "8.00", "\u2013", "7.12", "3 of 160", "80"],
    ]


def test_the_median_is_shown_where_there_were_several_judgings() -> None:
    shown = ratings_table([ROWS[0], replace(ROWS[1], ratings=replace(RATINGS, judgings=3))])
    assert shown.headings[6] == "median of judgings"
    assert [row[6] for row in shown.rows] == ["7.50", "7.50"]


def test_a_section_says_what_is_wrong_with_a_rater_and_lets_no_markup_through() -> None:
    hostile = "<b>x</b>\x1b[31m|"
    found = ratings_section([ROWS[0], replace(ROWS[1], policy=hostile, complaints=("The rater is fooled.",))])
    assert found is not None
    assert "The rater is fooled." in found.html
    assert "The rater is fooled." in found.markdown
    for text in (found.html, found.markdown):
        assert "\x1b" not in text
        assert "<b>" not in text.replace("\\<b\\>", "")
    assert ratings_section([]) is None


def test_win_rates_and_ratings_stand_by_category(judged: Callable[..., JudgedAnswers]) -> None:
    made = judged("DPR", [(1.0, 1.0), (1.0, 0.0), (0.0, 0.0)], benchmark="mt_bench")
    assert categories_section([made], ROWS) is None
    prompts = tuple(
        replace(prompt, question=replace(prompt.question, category=name))
        for prompt, name in zip(made.prompts, ("math", "math", "writing"), strict=True)
    )
    rated = replace(RATINGS, by_category={"math": {"mean": 4.5, "low": 4.0, "high": 5.0, "prompts": 10}})
    found = categories_section([replace(made, prompts=prompts)], [replace(ROWS[1], ratings=rated)])
    assert found is not None
    assert found.markdown.splitlines()[2:4] == [
        r"| mt\_bench | math | DPR | 75.0 \[50.0, 100.0\] | 4.50 \[4.00, 5.00\] | 2 |",
        r"| mt\_bench | writing | DPR | 0.0 | – | 1 |",
    ]
