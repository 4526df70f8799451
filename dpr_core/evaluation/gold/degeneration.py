"""Degeneration of answers, whatever was asked: repeated n-grams (seq-rep-4), and refusals by keywords.

seq-rep-n (Welleck et al., Neural Text Generation with Unlikelihood Training, 2020) is the share of an answer's n-grams
that stood in it before; here of words and marks, within each turn, and 0 of an answer that has no n-gram. A refusal is
an answer that opens with one of the English phrases below. Both are crude, and meant for comparing policies.
"""

import re
from collections.abc import Sequence

from dpr_core.evaluation.gold.measures import Measure, Values

N = 4

REPETITION = Measure("repetition", f"repeated {N}-grams %", more_is_better=False)
REFUSALS = Measure("refusals", "refusals %", more_is_better=False)
MEASURES = (REPETITION, REFUSALS)

OPENING = 200
"""Characters of an answer in which a refusal is looked for: later, the same words are mostly about something else."""

_WITHOUT_SPACES = "\u3040-\u30ff\u3400-\u9fff"
"""Japanese and Chinese, of which each character is taken for a word."""
_WORD = re.compile(rf"[{_WITHOUT_SPACES}]|[^\W{_WITHOUT_SPACES}]+|[^\w\s]")

_DECLINED = (
    "help|assist|answer|provide|give|offer|write|create|generate|produce|do|comply|fulfil|fulfill|complete|support|"
    "share|respond|discuss|engage|participate|tell|continue|endorse|recommend|advise|perform|access"
)
_REFUSAL = re.compile(
    r"\b(?:"
    rf"(?:i|we) (?:can't|cannot|can not|won't|will not|could not|couldn't) (?:\w+ )?(?:{_DECLINED})\b"
    r"|(?:i'm|i am|we're|we are) (?:\w+ )?(?:unable|not able|not allowed|not permitted) to\b"
    r"|(?:i|we) (?:must|have to) (?:\w+ )?(?:decline|refuse)\b"
    r"|(?:i'm|i am) (?:very |so )?(?:sorry|afraid),? (?:but )?(?:that )?i (?:can't|cannot|can not|won't|am not|don't)\b"
    r"|i (?:don't|do not) (?:feel comfortable|have the ability|have access)\b"
    r"|as an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|(?:i'm|i am) (?:just |only )?an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r")",
    re.IGNORECASE,
)


def of_answer(turns: Sequence[str]) -> Values:
    """Both measures of an answer, a text for each turn."""
    return {REPETITION.name: repetition(turns), REFUSALS.name: float(any(map(is_refusal, turns)))}


def repetition(turns: Sequence[str]) -> float:
    """seq-rep-4 of an answer, 0 to 1."""
    count = distinct = 0
    for words in map(_WORD.findall, turns):
        count += max(len(words) - N + 1, 0)
        distinct += len(set(zip(*(words[i:] for i in range(N)), strict=False)))
    return 1 - distinct / count if count else 0.0


def is_refusal(text: str) -> bool:
    """Whether a text opens with the words of a refusal."""
    return _REFUSAL.search(" ".join(text[:OPENING].replace("\u2019", "'").split())) is not None
