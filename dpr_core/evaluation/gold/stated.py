"""Results that texts announce (`#### X`, "the answer is X"): numbers compared as numbers, a few words as words."""

from dpr_core.evaluation.gold import arithmetic
from dpr_core.evaluation.questions import Question

MOST_WORDS = 3
"""Whatever is longer is no result, but a sentence."""


def result(text: str) -> str | None:
    """The number or the few words that a text announces last as its result; None where it announces none."""
    for line in arithmetic.announced(text):
        words = arithmetic.first_sentence(line).strip(" .")
        if found := arithmetic.first_number(line) or (words if 0 < len(words.split()) <= MOST_WORDS else None):
            return found
    return None


def is_right(question: Question, text: str) -> bool | None:
    """Whether an answer states the reference; None for a question without one."""
    reference = question.reference
    if reference is None:
        return None
    if arithmetic.value(reference) is not None:
        return arithmetic.same_number(arithmetic.read_result(text) or "", reference)
    return _words(result(text) or "") == _words(reference)


def _words(text: str) -> list[str]:
    return text.casefold().strip(" .").split()
