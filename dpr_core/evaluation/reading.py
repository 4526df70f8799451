"""Parsing of a judge's reply: what it states in its last line, or in JSON, after any thinking.

Judges that are asked for one form write others: emphasis, code fences, `[[A]]`, a sentence around the JSON. They are
read as long as there is one way to read them. Only what is stated last counts: before it a judge may quote an answer.
"""

import json
import re
from collections.abc import Sequence

THOUGHT = re.compile(r"</(?:think|thinking|thought|reasoning)>|\[/THINK\]|<\|channel\|>final<\|message\|>")
"""Ends what a reasoning model thinks, where its server leaves that in the reply."""

THINKING = re.compile(r"\s*(?:<(?:think|thinking|thought|reasoning)>|\[THINK\]|<\|channel\|>analysis)")

EMPHASIS = re.compile(r"[*_`~\"'$]|\\(?:boxed|text|textbf)\b|[{}]")

DECORATION = " \t#>.-=|"
"""Around a line."""

FENCE = re.compile(r"^\s*```\w*")

BRACKET = re.compile(r"[{\[]")

LENIENT = json.JSONDecoder(strict=False)
"""Takes a line end inside a text, which weak models forget to escape."""


def without_thinking(reply: str) -> str:
    """What follows the thinking; nothing where the thinking has no end."""
    ends = [found.end() for found in THOUGHT.finditer(reply)]
    if ends:
        return reply[ends[-1] :]
    return "" if THINKING.match(reply) else reply


def last_line(reply: str) -> str:
    """The last line that says anything, without emphasis and decoration."""
    lines = [EMPHASIS.sub("", line).strip(DECORATION) for line in without_thinking(reply).splitlines()]
    return next((line for line in reversed(lines) if line), "")


def only_one(patterns: Sequence[re.Pattern[str]], line: str) -> str | None:
    """What the first of the patterns that occurs in a line finds there, if it is the same wherever it occurs."""
    for pattern in patterns:
        if found := {each.upper() for each in pattern.findall(line)}:
            return found.pop() if len(found) == 1 else None
    return None


def is_json(reply: str) -> bool:
    """Whether a reply is JSON from its beginning, in a code fence or not, though words may follow."""
    return FENCE.sub("", without_thinking(reply)).lstrip().startswith("{")


def in_json(reply: str, field: str) -> object:
    """The field of the reply's JSON object, whatever stands around it; None where it has none.

    Of several objects all must say the same, and a bracket that opens no JSON makes the whole unreadable: an object
    inside a broken one may be a quotation.
    """
    text = reply if reply.lstrip().startswith(("{", "`")) else without_thinking(reply)
    stated, start = [], 0
    while opened := BRACKET.search(text, start):
        try:
            value, start = LENIENT.raw_decode(text, opened.start())
        except (ValueError, RecursionError):
            return None
        if isinstance(value, dict) and field in value:
            stated.append(value[field])
    return stated[0] if stated and all(each == stated[0] for each in stated) else None
