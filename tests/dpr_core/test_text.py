import json

import pytest

from dpr_core.text import escape_control, json_text, same_words


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, caf\u00e9 \u4f60\u597d \U0001f600", "plain text, caf\u00e9 \u4f60\u597d \U0001f600"),
        ("a\nb\tc", "a\u21b5b\u21e5c"),
        ("\x1b[2J", "\u27e8U+001B\u27e9[2J"),
        ("\x00\r\x7f\x9b", "\u27e8U+0000\u27e9\u27e8U+000D\u27e9\u27e8U+007F\u27e9\u27e8U+009B\u27e9"),
        ("a\u200bb\u202ec\ufeff", "a\u27e8U+200B\u27e9b\u27e8U+202E\u27e9c\u27e8U+FEFF\u27e9"),
        ("\u2028\u2029\u00a0\u3000", "\u27e8U+2028\u27e9\u27e8U+2029\u27e9\u27e8U+00A0\u27e9\u27e8U+3000\u27e9"),
        ("\ud83d", "\u27e8U+D83D\u27e9"),
        ("\u0301e", "\u25cc\u0301e"),
        ("", ""),
    ],
)
def test_nothing_stays_hidden(text: str, shown: str) -> None:
    assert escape_control(text) == shown


@pytest.mark.parametrize("indent", [None, 2])
def test_json_says_the_same_and_hides_nothing(indent: int | None) -> None:
    value = {
        "caf\u00e9 \u4f60 \U0001f600": [
            "a\nb\tc\x1b[2J",
            "\x7f\x9b\u200b\u202e\u2028\ufeff\ud83d",
            "\U000e0041",
            0.1,
            None,
        ]
    }
    text = json_text(value, indent)
    assert json.loads(text) == value
    assert all(line.isprintable() for line in text.split("\n"))
    assert "caf\u00e9 \u4f60 \U0001f600" in text
    assert json_text({"a": [1, 2]}, indent) == json.dumps({"a": [1, 2]}, indent=indent)


def test_case_and_spaces_make_no_other_words() -> None:
    assert same_words(" Start\u00a0AT 1,\nadd\t2. ") == same_words("start at 1, add 2.") == "start at 1, add 2."
    assert same_words("start at 1") != same_words("start at 2")
