"""Text as it can be shown: nothing hidden, nothing that steers a terminal or a page."""

import json
import unicodedata
from typing import Any

_NAMED = {"\n": "\u21b5", "\t": "\u21e5"}
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def escape_control(text: str) -> str:
    """The text with every control, zero-width, bidirectional and odd space character replaced by a sign for it."""
    shown = "".join(_sign(character) for character in text)
    return "\u25cc" + shown if shown and unicodedata.combining(shown[0]) else shown


def escape_control_lines(text: str) -> str:
    """The same with its line breaks kept, for where a page keeps them too."""
    return "\n".join(map(escape_control, text.split("\n")))


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON that says what `value` holds and may stand in a terminal: what is unseen is written as \\u and a number."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return "".join(json.dumps(c)[1:-1] if c != "\n" and unicodedata.category(c) in _UNSEEN else c for c in text)


def _sign(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    category = unicodedata.category(character)
    if category in _UNSEEN or (category == "Zs" and character != " "):
        return f"\u27e8U+{ord(character):04X}\u27e9"
    return character
