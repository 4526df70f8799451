"""E2E: slot error of restaurant descriptions (named and invented values), BLEU and ROUGE-L against all references."""

import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from dpr_core.config.gold import E2EConfig
from dpr_core.errors import UsageError
from dpr_core.evaluation.gold import rows
from dpr_core.evaluation.gold.measures import Gold, Measure, Values
from dpr_core.evaluation.questions import Question

SLOT = re.compile(r"\s*([A-Za-z ]+?)\s*\[([^\[\]]*)\]\s*(?:,|$)")

RATING, PRICE = "customer rating", "priceRange"

_LEVEL = r"(?P<high>high\w*|excellent|great|top)|(?P<average>average|moderate\w*|decent)|(?P<low>low\w*|poor\w*|bad\w*)"
_WORDS = r"[\s-]+(?:(?!price|cost)\w+[\s-]+){0,2}?"
_RATED = r"(?:customer[\s-]+|well[\s-]+)?(?:rat(?:ed|ing)s?|reviews?|satisfaction|scores?)\b"

_FOUND: Mapping[str, Mapping[str, str]] = {
    "eatType": {
        "coffee shop": r"coffee[\s-]*(?:shop|house|bar)|caf(?:e|\u00e9)\b",
        "pub": r"\bpubs?\b",
        "restaurant": r"\brestaurants?\b",
    },
    "food": {
        "Chinese": r"\bchinese\b",
        "English": r"\b(?:english|british)\b",
        "Fast food": r"\bfast[\s-]*food",
        "French": r"\bfrench\b",
        "Indian": r"\bindian\b",
        "Italian": r"\bitalian\b",
        "Japanese": r"\bjapanese\b",
    },
    "area": {
        "city centre": r"\b(?:city|town)'?s?[\s-]+cent(?:re|er)|\bdowntown\b"
        r"|\bcent(?:re|er)\s+of\s+(?:the\s+)?(?:city|town)",
        "riverside": r"\briver(?:side|bank)?\b",
    },
    PRICE: {
        "cheap": r"\bcheap\w*|\binexpensive|\baffordable|\bbudget|\blow(?:er)?[\s-]+(?:price|cost)\w*"
        r"|price\w*\s+(?:\w+\s+){0,2}low\b"
        r"|(?:less|lower|under|below|cheaper)\s+(?:than\s+)?(?:\u00a3|gbp|pounds?)?\s*20\b",
        "moderate": r"\b(?:moderate\w*|mid|medium|average|reasonabl\w+)[\s-]+(?:\w+[\s-]+)?pric\w+"
        r"|\bpric\w+\s+(?:\w+\s+){0,2}(?:moderate|average|reasonable)|\bmoderately[\s-]+priced|(?:\u00a3|gbp)\s*20\s*(?:-|to|and|\u2013)",
        "high": r"\bexpensive\b|\b(?:high|higher|upper)[\s-]+(?:end[\s-]+)?pric\w+|\bpric\w+\s+(?:\w+\s+){0,2}high\b"
        r"|(?:more|over|above|higher)\s+(?:than\s+)?(?:\u00a3|gbp|pounds?)?\s*30\b",
    },
    RATING: {
        "high": r"\b(?:5|five)[\s-]*(?:out[\s-]+of[\s-]+(?:5|five)|/\s*5|[\s-]*stars?)",
        "average": r"\b(?:3|three)[\s-]*(?:out[\s-]+of[\s-]+(?:5|five)|/\s*5|[\s-]*stars?)",
        "low": r"\b(?:1|one)[\s-]*(?:out[\s-]+of[\s-]+(?:5|five)|/\s*5|[\s-]*stars?)",
    },
}
"""How the values of an attribute are found in a text that is lower-cased."""

_SAME = {
    "less than \u00a320": "cheap", "\u00a320-25": "moderate", "more than \u00a330": "high",
    "5 out of 5": "high", "3 out of 5": "average", "1 out of 5": "low",
}  # fmt: skip
"""Values that people write for one another."""

_RATED_WORDS = re.compile(
    rf"\b(?:{_LEVEL}){_WORDS}{_RATED}|\b{_RATED}\s+(?:\w+\s+){{0,2}}?(?:{_LEVEL.replace('<', '<r')})\b"
)
_WELL_RATED = re.compile(r"\b(?:well|highly)[\s-]+(?:rated|reviewed|recommended)")
_FAMILY = re.compile(r"\b(?:famil(?:y|ies)|kids?|child(?:ren)?)\b|\badults?[\s-]+only|\bonly\s+(?:for\s+)?adults?")
_NOT = re.compile(
    r"\b(?:not?|non|none|leave|isn'?t|aren'?t|doesn'?t|don'?t|never|without|unsuitable|unfriendly|adults?)\b|n't\b"
)
_NEAR = re.compile(
    r"\b(?i:near(?:by)?(?: to)?|close to|next to|beside|opposite|adjacent to|by)\s+(?:[Tt]he\s+)?"
    r"([A-Z][\w'\u00e9]+(?:\s+(?:by\s+)?[A-Z][\w'\u00e9]+)*)"
)
_AREAS = frozenset({"city", "river", "riverside", "centre", "center"})

RIGHT = Measure("right", "no slot error %")
SLOT_ERROR = Measure("slot_error", "slot error %", weight="slots", more_is_better=False)
OMITTED = Measure("omitted", "omitted slots %", weight="slots", more_is_better=False)
INVENTED = Measure("invented", "invented slots %", weight="slots", more_is_better=False)
ROUGE = Measure("rouge_l", "ROUGE-L")
BLEU = Measure("bleu", "BLEU", is_share=False)


def load(config: E2EConfig) -> list[Question]:
    """A question for each prompt, with all references that its rows have."""
    if missing := [name for name in ("sacrebleu", "rouge_score") if importlib.util.find_spec(name) is None]:
        raise UsageError(
            f"the benchmark e2e needs {' and '.join(missing).replace('_', '-')} for BLEU and ROUGE; "
            "install them: pip install 'dense-path[gold]'"
        )
    found: dict[str, Question] = {}
    for row in rows.every(config):
        if not slots(row.prompt):
            raise UsageError(f"{row.where} (id {row.id}) names no slots such as name[The Eagle], area[riverside]")
        references = row.references or ((row.response,) if row.response.strip() else ())
        if not references:
            raise UsageError(
                f"{row.where} (id {row.id}) has neither {config.columns.references!r} nor {config.columns.response!r}"
            )
        known = found.get(row.prompt)
        found[row.prompt] = (
            replace(known, references=(*known.references, *references))
            if known
            else row.question(references=references)
        )
    return rows.selected(list(found.values()), config)


def slots(prompt: str) -> dict[str, str]:
    """The attributes of a prompt such as `name[The Eagle], area[riverside]`; none where it is something else."""
    matches = list(SLOT.finditer(prompt))
    whole = "".join(each.group() for each in matches) == prompt
    return {each.group(1): each.group(2).strip() for each in matches} if whole else {}


def is_right(question: Question, text: str) -> bool:
    """Whether an answer names all slots and invents none."""
    omitted, invented = errors(slots(question.prompt), text)
    return not omitted and not invented


def errors(wanted: Mapping[str, str], text: str) -> tuple[list[str], list[str]]:
    """The attributes whose values a text does not name, and those for which it names another one."""
    rest = text
    omitted, invented = [], []
    for attribute in ("name", "near"):
        value = wanted.get(attribute)
        if value is not None:
            pattern = re.compile(r"(?:\bthe\s+)?" + re.escape(value).replace(r"\ ", r"\s+") + r"(?!\w)", re.IGNORECASE)
            if not pattern.search(rest):
                omitted.append(attribute)
            rest = pattern.sub(" \u2026 ", rest)
    if any(each.group(1).split()[0].casefold() not in _AREAS for each in _NEAR.finditer(rest)):
        invented.append("near")
    plain = rest.casefold()
    for attribute in (*_FOUND, "familyFriendly"):
        named, value = set(_named(attribute, plain)), wanted.get(attribute)
        if attribute == "eatType" and value != "restaurant":
            # What serves food is a restaurant in any language.
            named.discard("restaurant")
        meant = value if value is None else _SAME.get(value, value)
        if value is not None and meant not in named and value.casefold() not in plain:
            omitted.append(attribute)
        if named - {meant}:
            invented.append(attribute)
    others = wanted.keys() - {"name", "near", "familyFriendly", *_FOUND}
    return omitted + [each for each in sorted(others) if wanted[each].casefold() not in plain], invented


def _named(attribute: str, plain: str) -> Iterator[str]:
    """The values of an attribute that stand in a lower-case text."""
    if attribute == "familyFriendly":
        yield from (_friendly(plain, each) for each in _FAMILY.finditer(plain))
        return
    yield from (value for value, pattern in _FOUND[attribute].items() if re.search(pattern, plain))
    if attribute == RATING:
        for found in _RATED_WORDS.finditer(plain):
            yield from (name.removeprefix("r") for name, words in found.groupdict().items() if words)
        if _WELL_RATED.search(plain):
            yield "high"


def _friendly(plain: str, found: re.Match[str]) -> str:
    """By a negation in the same clause, before it or shortly after it."""
    before = re.split(r"[.;!?]|\bbut\b", plain[: found.start()])[-1][-40:]
    after = re.split(r"[.,;!?]", plain[found.end() :])[0][:25]
    return "no" if _NOT.search(before) or _NOT.search(found.group()) or _NOT.search(after) else "yes"


def of_answer(question: Question, text: str) -> Values:
    wanted = slots(question.prompt)
    omitted, invented = errors(wanted, text)
    return {
        "right": float(not omitted and not invented),
        "slots": float(len(wanted)),
        "slot_error": (len(omitted) + len(invented)) / len(wanted),
        "omitted": len(omitted) / len(wanted),
        "invented": len(invented) / len(wanted),
        "rouge_l": _rouge().score_multi(list(question.references), text)["rougeL"].fmeasure,
    }


def of_answers(answered: Sequence[tuple[Question, str]]) -> Values:
    """BLEU of all answers together, each against as many references as it has."""
    import sacrebleu

    most = max(len(question.references) for question, _ in answered)
    columns = [[_or_none(question.references, i) for question, _ in answered] for i in range(most)]
    texts = [text for _, text in answered]
    # Its own list of types leaves out that a missing reference is None.
    return {"bleu": float(sacrebleu.corpus_bleu(texts, columns).score)}  # type: ignore[arg-type]


def _or_none(references: Sequence[str], i: int) -> str | None:
    return references[i] if i < len(references) else None


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"])


GOLD = Gold((RIGHT, SLOT_ERROR, OMITTED, INVENTED, ROUGE, BLEU), of_answer, of_answers)
