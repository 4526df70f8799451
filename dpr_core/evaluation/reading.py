"""Parsing of a judge's reply: what it states in its last line, or in JSON, after any thinking.

Judges that are asked for one form write others: emphasis, code fences, `[[A]]`, a sentence around the JSON. They are
read as long as there is one way to read them. Only what is stated last counts: before it a judge may quote an answer.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

THOUGHT = re.compile(r"</(?:think|thinking|thought|reasoning)>|\[/THINK\]|<\|channel\|>final<\|message\|>")
"""Ends what a reasoning model thinks, where its server leaves that in the reply."""

THINKING = re.compile(r"\s*(?:<(?:think|thinking|thought|reasoning)>|\[THINK\]|<\|channel\|>analysis)")

EMPHASIS = re.compile(r"[*_~$]|\\(?:boxed|text|textbf)\b|[{}]")

DECORATION = " \t#.-=|`"
"""Around a line. Marks of quotation are none: what stands in them an answer may have said."""

FENCE = re.compile(r"^\s*```\w*")

BRACKET = re.compile(r"[{\[]")

MENTIONED = re.compile(r"\b[AB]\b|\b(?:[Aa]nswer|[Aa]ssistant|[Rr]esponse)")
"""Words of which an object may be the object: what an answer says."""

STATED_AGAIN = re.compile(r"\b(?:verdict|rating)\W*[:=]\W*(\w+(?:\.\d+)?)", re.IGNORECASE)


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


def stated(line: str, forms: Sequence[re.Pattern[str]], mentioned: re.Pattern[str]) -> str | None:
    """What a line in one of the forms states, if whatever is mentioned in it is the same."""
    found = {each.upper() for each in mentioned.findall(line)}
    return found.pop() if len(found) == 1 and any(form.search(line) for form in forms) else None


def is_json(reply: str) -> bool:
    """Whether a reply is JSON from its beginning to its end, in a code fence or not."""
    text = FENCE.sub("", without_thinking(reply)).strip(" \t\r\n`")
    return text.startswith("{") and text.endswith("}")


def in_json(reply: str, field: str) -> object:
    """The field of the reply's JSON object, which words may come before and after; None where it has none.

    The object must have its lines for itself: in the middle of a sentence it may be a quotation, and so may one inside
    a bracket that opens no JSON, or between words about the answers. Of several objects, or fields of one name, all
    must say the same, and so must a verdict that is stated after them.
    """
    text = reply if reply.lstrip().startswith(("{", "`")) else without_thinking(reply)
    found: list[object] = []
    start = end = 0
    words_before = ""
    while opened := BRACKET.search(text, start):
        try:
            value, start = LENIENT.raw_decode(text, opened.start())
        except (ValueError, RecursionError):
            return None
        if isinstance(value, dict) and field in value:
            before, after = text[: opened.start()].rpartition("\n")[2], text[start:].partition("\n")[0]
            if before.strip() or after.strip(" \t\r`"):
                return None
            words_before = words_before if found else FENCE.sub("", text[: opened.start()])
            found.append(value[field])
            end = start
    words_after = text[end:].strip(" \t\r\n`")
    if words_before.strip() and words_after and MENTIONED.search(f"{words_before} {words_after}"):
        return None
    if found and any(again.upper() != str(found[0]).upper() for again in STATED_AGAIN.findall(words_after)):
        return None
    return found[0] if found and all(each == found[0] for each in found) else None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """ValueError where a field stands twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field stands twice")
    return found


LENIENT = json.JSONDecoder(strict=False, object_pairs_hook=_once)
"""Takes a line end inside a text, which weak models forget to escape."""
