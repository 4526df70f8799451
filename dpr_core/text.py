"""Escaping of untrusted text (control, zero-width and bidirectional characters become visible signs), and its words."""

import json
import unicodedata
from typing import Any

_SIGNS = {"\n": "\u21b5", "\t": "\u21e5"}
_INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def escape_control(text: str) -> str:
    """The text with every control, zero-width, bidirectional and unusual space character replaced by a visible sign."""
    shown = "".join(_sign(character) for character in text)
    return "\u25cc" + shown if shown and unicodedata.combining(shown[0]) else shown


def escape_control_lines(text: str) -> str:
    """The same, with line breaks kept."""
    return "\n".join(map(escape_control, text.split("\n")))


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON that is safe to print in a terminal: invisible characters are escaped as \\u and a number."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return "".join(json.dumps(c)[1:-1] if c != "\n" and unicodedata.category(c) in _INVISIBLE else c for c in text)


def same_words(text: str) -> str:
    """The same for texts that differ in case, spaces and the form of their characters alone."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _sign(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    category = unicodedata.category(character)
    if category in _INVISIBLE or (category == "Zs" and character != " "):
        return f"\u27e8U+{ord(character):04X}\u27e9"
    return character
