"""MT-Bench's reference answers: which questions lack one that they need, or have one that is known to be wrong."""

import hashlib
from collections.abc import Iterable

from dpr_core.evaluation.official.mt_bench import WITH_REFERENCES
from dpr_core.evaluation.questions import Question

WRONG = {
    "104": "00a8ef62da09",
    "105": "86b1f00f711b",
    "109": "ecda58c62445",
    "111": "ecf2db94b4b8",
    "113": "40585793d709",
    "114": "86eb90e42589",
    "120": "06f1a1973596",
    "122": "7deea74bc69b",
    "124": "ae0057e27aaa",
    "125": "fd568bc78020",
    "126": "930c168477c9",
    "128": "2d5fae33e8a8",
    "130": "074d912e5a24",
}
"""Of FastChat's reference_answer/gpt-4.jsonl, by its pull request 3158: the beginning of a hash of both turns."""


def wrong(questions: Iterable[Question]) -> list[str]:
    """The ids of questions whose reference is wrong in at least one turn."""
    return [each.id for each in questions if each.id in WRONG and _digest(each.references) == WRONG[each.id]]


def warnings(questions: Iterable[Question]) -> list[str]:
    """What should be known before a judge is asked as MT-Bench asks it."""
    asked = list(questions)
    without = [each for each in asked if each.category in WITH_REFERENCES and not each.references]
    if not without:
        return wrong_warnings(asked)
    categories = ", ".join(sorted({each.category for each in without}))
    missing = (
        f"{len(without)} questions of {categories} have no reference answer and are judged without one, such as "
        f"{without[0].id}; MT-Bench's own score needs them: give the benchmark its `references`"
    )
    return [missing, *wrong_warnings(asked)]


def wrong_warnings(questions: Iterable[Question]) -> list[str]:
    """What should be known before a judge is shown these references."""
    known = wrong(questions)
    if not known:
        return []
    return [
        f"the reference answers to questions {', '.join(known)} are FastChat's own, which are wrong in at least one "
        "turn; its pull request 3158 has corrected ones (gpt-4-0125-preview.jsonl): give them as `references`"
    ]


def _digest(references: tuple[str, ...]) -> str:
    return hashlib.sha256("\0".join(references).encode("utf-8", "surrogatepass")).hexdigest()[:12]
