from typing import Any

import pytest

from dpr_core.errors import UsageError
from dpr_core.evaluation.official import arena_hard
from dpr_core.evaluation.rows import Row


def game(label: str | None, **changes: Any) -> Row:
    return {"score": label, "judgment": f"So [[{label}]]", "user_prompt": "Ask q. base. mine."} | changes


def row(name: str, first: str | None, second: str | None, **changes: Any) -> Row:
    return {"question_id": name, "model": "m", "judge": "gpt-4", "games": [game(first), game(second)]} | changes


QUESTIONS = [{"question_id": name, "turns": [{"content": "Ask q."}]} for name in ("a", "b", "c")]
ROWS = [row("a", "B>>A", "A>B"), row("b", "A>B", "A=B"), row("c", "A=B", None)]


def test_both_official_scores_and_the_papers() -> None:
    score = arena_hard.score(ROWS, [], QUESTIONS)["m"]
    # Points of the judged model, second in the first game: a 1 x3 and 1, b 0 and 0.5, c 0.5 and nothing.
    assert score.official["score_v0.1"] == pytest.approx(100 * (3 + 1 + 0 + 0.5 + 0.5) / (3 + 1 + 1 + 1 + 1))
    assert score.official["score_v2.0"] == pytest.approx(100 * (3 + 1 + 0 + 0.5) / (3 + 1 + 1 + 1))
    assert score.paper["win_rate"] == pytest.approx(100 * (1 + 0.25 + 0.5) / 3)
    assert score.paper["contradiction_rate"] == pytest.approx(1 / 2)
    # Decided games: second won, first won (a); first won (b).
    assert score.paper["first_position_rate"] == pytest.approx(2 / 3)
    assert (score.n, score.unscored) == (3, 1)
    assert score.warnings == ["1 verdicts could not be read (c game 2)"]
    low, high = score.official["ci"]
    assert low < score.official["score_v0.1"] < high


def test_labels_spelled_backwards_count_for_the_newer_script_alone() -> None:
    score = arena_hard.score([row("a", "A<<B", "A>B"), row("b", "A>B", "B>A")], [], [])["m"]
    assert score.official["score_v2.0"] == pytest.approx(100 * (3 + 1 + 0 + 0) / 6)
    assert score.official["score_v0.1"] == pytest.approx(100 * (1 + 0 + 0) / 3)


def test_a_failed_game_and_an_unknown_label_are_unscored() -> None:
    rows = [row("a", "A>B", "A>B"), {**row("b", "A>B", "A>B"), "games": [None, game("B!A")]}]
    score = arena_hard.score(rows, [], [])["m"]
    assert score.unscored == 2
    assert score.official["score_v2.0"] == 50.0
    assert any("1 games failed (b game 1)" in line for line in score.warnings)
    assert any("labels are unknown" in line and "b game 2" in line for line in score.warnings)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([*ROWS, ROWS[0]], "judged more than once"),
        ([row("a", "A>B", "A>B", judge="other"), *ROWS[1:]], "2 judges are mixed"),
        ([row("z", "A>B", "A>B"), *ROWS], "unknown questions"),
        (ROWS[:1], "1 of 3 questions were judged"),
        ([{**ROWS[0], "games": [game("A>B", judgment="So [[B>A]]"), game("A>B")]}], "not in the judge's text"),
        ([{**ROWS[0], "games": [game("A>B", user_prompt="Another."), game("A>B")]}], "show another question"),
        ([{**ROWS[0], "games": [game("A>B")]}], "do not have two games"),
    ],
)
def test_what_is_wrong_is_said(rows: list[Row], expected: str) -> None:
    assert any(expected in line for line in arena_hard.score(rows, [], QUESTIONS)["m"].warnings)


OLD_ANSWER = {"question_id": "a", "model_id": "m", "choices": [{"turns": [{"content": "mine."}]}]}
NEW_ANSWER = {
    "uid": "a",
    "model": "m",
    "messages": [{"role": "user", "content": "Ask q."}, {"role": "assistant", "content": {"answer": "mine."}}],
}


@pytest.mark.parametrize("answer", [OLD_ANSWER, NEW_ANSWER], ids=["v0.1", "v2.0"])
def test_answers_of_both_schemas_are_compared_with_what_was_judged(answer: Row) -> None:
    stale = "no longer the current ones"
    rows = [ROWS[0]]
    assert not any(stale in line for line in arena_hard.score(rows, [answer], [])["m"].warnings)
    changed: Row = {**rows[0], "games": [game("A>B", user_prompt="Ask q. base. old."), game("A>B")]}
    assert any(stale in line for line in arena_hard.score([changed], [answer], [])["m"].warnings)


def test_the_newer_schema_is_read_throughout() -> None:
    shown = [{"role": "system", "content": "Judge."}, {"role": "user", "content": "Ask q. base. mine."}]
    games = [{"score": "B>A", "judgment": {"answer": "So [[B>A]]"}, "prompt": shown}] * 2
    new = {"uid": "a", "category": "hard_prompt", "judge": "gpt-4.1", "model": "m", "baseline": "o3", "games": games}
    other = {**new, "uid": "b", "category": "creative_writing"}
    questions = [{"uid": name, "prompt": "Ask q.", "category": "x"} for name in ("a", "b")]
    score = arena_hard.score([new, other], [NEW_ANSWER, {**NEW_ANSWER, "uid": "b"}], questions)["m"]
    assert score.warnings == []
    assert score.official["score_v2.0"] == 50.0
    assert score.official["categories_v2.0"] == {"creative_writing": 50.0, "hard_prompt": 50.0}


def test_another_format_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="not Arena-Hard judgments: row 1 has no 'games'"):
        arena_hard.score([{"model": "m", "uid": "a"}], [], [])
    with pytest.raises(UsageError, match="neither uid nor question_id"):
        arena_hard.score([{"model": "m", "games": []}], [], [])
    with pytest.raises(UsageError, match="question a: `games`"):
        arena_hard.score([{"question_id": "a", "model": "m", "games": "none"}], [], [])


def test_a_label_in_single_brackets_is_written_too() -> None:
    rows = [row("a", "A>B", "A=B") | {"games": [game("A>B", judgment="So [a>b]"), game("A=B")]}]
    assert not any("text" in line for line in arena_hard.score(rows, [], [])["m"].warnings)


@pytest.mark.parametrize(
    ("categories", "expected"),
    [
        (("arena-hard-v0.1",), "1 of 500 questions were judged"),
        (("creative_writing",), "1 of 250 questions were judged"),
        (("hard_prompt", "creative_writing"), "2 of 750 questions were judged"),
    ],
)
def test_partial_coverage_of_a_category_is_said(categories: tuple[str, ...], expected: str) -> None:
    rows = [row(name, "A>B", "A=B", category=name) for name in categories]
    score = arena_hard.score(rows, [], [])["m"]
    assert score.warnings == [expected]
    rates = {name: each["mean"] for name, each in score.paper.get("by_category", {}).items()}
    assert rates == (dict.fromkeys(categories, 25.0) if len(categories) > 1 else {})


def test_the_official_interval_is_the_binomial_one() -> None:
    # 800 outcomes of which 600 are won: 75 +- 1.96 sqrt(0.75 0.25 / 800).
    rows = [row(str(i), "B>A", "A>B" if i % 2 else "B>A") for i in range(400)]
    low, high = arena_hard.score(rows, [], [])["m"].official["ci"]
    assert (low, high) == (pytest.approx(72.0, abs=0.4), pytest.approx(78.0, abs=0.4))
