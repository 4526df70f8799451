import pytest

from dpr_core.evaluation.gold.degeneration import is_refusal, of_answer, repetition


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        (("one two three four five",), 0.0),
        (("a b c d a b c d",), 1 - 4 / 5),
        (("no no no no no no no no no no",), 1 - 1 / 7),
        (("three words only",), 0.0),
        (("",), 0.0),
        # Punctuation counts, case does, and spaces do not.
        (("ha! ha! ha! ha!",), 1 - 2 / 5),
        (("a  b\nc d A b c d",), 0.0),
        # Each turn by itself, n-grams of both together.
        (("a b c d", "a b c d"), 0.0),
        (("a b c d e", "x x x x x x"), 1 - 3 / 5),
        # No spaces between words.
        (("\u4f60\u597d\u5417\u4f60\u597d\u5417\u4f60\u597d\u5417",), 1 - 3 / 6),
    ],
)
def test_repetition_is_the_share_of_4_grams_that_stood_there_before(turns: tuple[str, ...], expected: float) -> None:
    assert repetition(turns) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, but I cannot\nassist you.",
        "I cannot provide medical advice.",
        "Unfortunately, I am unable to open links.",
        "As an AI language model, I have no opinions.",
        "We will not share this.",
        "I must respectfully decline.",
        "I am just an AI and have no body.",
        "I don't have access to the internet.",
    ],
)
def test_refusals_are_found_by_their_words(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry to hear that. Have you tried tea?",
        "You cannot divide by zero.",
        "I can't believe it is 504! Here is how to get there.",
        "Sure. " + "Here is a story. " * 20 + "'I cannot help you,' said the wizard.",
        "An AI is a machine that learns.",
        "Tell them: we are unablewards.",
        "",
    ],
)
def test_other_answers_are_none(text: str) -> None:
    assert not is_refusal(text)


def test_an_answer_refuses_where_one_of_its_turns_does() -> None:
    assert of_answer(("Yes.", "I cannot answer that.")) == {"repetition": 0.0, "refusals": 1.0}
    assert of_answer(("Yes.", "No.")) == {"repetition": 0.0, "refusals": 0.0}
