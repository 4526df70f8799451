from collections.abc import Callable

import pytest

from dpr_core.reporting.examples import MOST, TEXT, WORDS, choose_examples, cut, examples_section
from dpr_core.reporting.judgments import JudgedAnswers

Make = Callable[..., JudgedAnswers]
WON, LOST, AGAINST = (1.0, 1.0), (0.0, 0.0), (1.0, 0.0)


def test_examples_are_sorted_by_verdict(judged: Make) -> None:
    chosen = choose_examples(judged("DPR", [WON, LOST, AGAINST, (0.5, 0.5), (1.0, None), (None, None), (0.5, 1.0)]), 3)
    assert [(each.kind, [p.question.id for p in each.prompts], each.of) for each in chosen] == [
        ("Won in both orders", ["q0"], 1),
        ("Lost in both orders", ["q1"], 1),
        ("The two orders contradict each other", ["q2", "q6"], 2),
    ]


def test_a_few_are_taken_from_the_whole_benchmark(judged: Make) -> None:
    (chosen,) = choose_examples(judged("DPR", [WON] * 10), 3)
    assert [prompt.question.id for prompt in chosen.prompts] == ["q0", "q3", "q6"]
    assert chosen.of == 10


@pytest.mark.parametrize(("policies", "each"), [(1, 3), (21, 2), (MOST, 1)])
def test_their_number_is_bounded(judged: Make, policies: int, each: int) -> None:
    shown = examples_section([judged(f"p{i}", [WON] * 4) for i in range(policies)], "SFT")
    assert shown is not None
    assert shown.html.count('class="example"') == policies * each
    assert shown.html.count(f"Won in both orders: {each} of 4") == policies


def test_an_example_has_all_turns_both_answers_and_the_judges_words(judged: Make) -> None:
    made = judged(
        "DPR", [AGAINST], turns=("One?", "Two?"), answers=("mine\nhere", "theirs"), words="I think", tokens=(7, 5)
    )
    shown = examples_section([made], "SFT")
    assert shown is not None
    texts = [
        "Question, turn 1",
        "One?",
        "DPR, turn 1",
        "mine\nhere",
        "SFT, turn 1",
        "theirs",
        "Question, turn 2",
        "Two?",
    ]
    texts += ["Judge, DPR shown first: DPR wins", "I think 0", "Judge, SFT shown first: SFT wins", "I think 1"]
    places = [shown.html.index(f">{text}<") for text in texts]
    assert places == sorted(places)
    assert shown.html.count(">mine\nhere<") == 2
    assert "Tokens: DPR 7, SFT 5." in shown.html
    assert shown.markdown == ""


def test_what_is_cut_says_by_how_much(judged: Make) -> None:
    assert cut("abcdef", 6) == "abcdef"
    assert cut("a" * 1234, 34) == "a" * 34 + " [\u2026 1,200 more characters]"
    made = judged("DPR", [LOST], answers=("x" * (TEXT + 50_000), ""), words="y" * (WORDS + 98))
    shown = examples_section([made], "SFT")
    assert shown is not None
    assert "x" * TEXT + " [\u2026 50,000 more characters]" in shown.html
    assert "y" * WORDS + " [\u2026 100 more characters]" in shown.html
    assert "(empty)" in shown.html
    assert len(shown.html) < 6000 + TEXT


def test_nothing_to_show_is_said(judged: Make) -> None:
    shown = examples_section([judged("DPR", [(0.5, 0.5)])], "SFT")
    assert shown is not None
    assert "No prompt was won or lost in both orders" in shown.html
    assert examples_section([], "SFT") is None
