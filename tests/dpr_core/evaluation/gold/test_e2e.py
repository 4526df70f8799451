import importlib.util
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dpr_core.config.gold import E2EConfig
from dpr_core.errors import UsageError
from dpr_core.evaluation import benchmarks
from dpr_core.evaluation.gold import e2e
from dpr_core.evaluation.gold.measures import pooled
from dpr_core.evaluation.questions import Question

NEEDED = pytest.mark.skipif(
    importlib.util.find_spec("sacrebleu") is None or importlib.util.find_spec("rouge_score") is None,
    reason="BLEU and ROUGE are optional: pip install 'dense-path[gold]'",
)

EAGLE = (
    "name[The Eagle], eatType[coffee shop], food[French], priceRange[cheap], customer rating[5 out of 5], "
    "area[riverside], familyFriendly[no], near[Burger King]"
)


def written(folder: Path, *rows: dict[str, Any]) -> E2EConfig:
    path = folder / "e2e.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return E2EConfig(path=str(path))


def errors(text: str, prompt: str = EAGLE) -> tuple[list[str], list[str]]:
    return e2e.errors(e2e.slots(prompt), text)


def test_a_text_that_names_all_eight_slots_has_no_error() -> None:
    assert len(e2e.slots(EAGLE)) == 8
    for text in (
        "The Eagle is a cheap French coffee shop by the riverside near Burger King. It is rated 5 out of 5 and is not "
        "family-friendly.",
        "Near Burger King on the river, the eagle coffee shop serves French food at low prices. It has a high customer "
        "rating, but no kids are allowed.",
        "The inexpensive French coffee house The Eagle (5 stars) is for adults only, close to Burger King, riverside.",
    ):
        assert errors(text) == ([], []), text


@pytest.mark.parametrize(
    ("text", "omitted", "invented"),
    [
        ("A pub.", ["name"], ["eatType"]),
        ("The Eagle serves Italian food.", [], ["food"]),
        ("The Eagle, a restaurant.", [], []),
        ("The Eagle in the city centre.", [], ["area"]),
        ("The Eagle near The Rice Boat.", [], ["near"]),
        ("The Eagle near the City Centre.", [], ["area"]),
        ("The Eagle is expensive.", [], ["priceRange"]),
        ("The Eagle has a high price range and a low rating.", [], ["priceRange", "customer rating"]),
        ("The Eagle is well rated.", [], ["customer rating"]),
        ("The Eagle is good for families.", [], ["familyFriendly"]),
        ("The Eagles.", ["name"], []),
    ],
)
def test_what_a_prompt_does_not_have_is_invented(text: str, omitted: list[str], invented: list[str]) -> None:
    assert errors(text, "name[The Eagle]") == (omitted, invented)


@pytest.mark.parametrize(
    ("prompt", "text", "omitted", "invented"),
    [
        ("familyFriendly[yes]", "Kids are welcome.", [], []),
        ("familyFriendly[yes]", "It is not kid friendly.", ["familyFriendly"], ["familyFriendly"]),
        ("familyFriendly[no]", "It isn't for children.", [], []),
        ("priceRange[less than \u00a320]", "It costs less than \u00a320.", [], []),
        ("priceRange[more than \u00a330]", "It is in the moderate price range.", ["priceRange"], ["priceRange"]),
        ("customer rating[3 out of 5]", "It has an average customer rating.", [], []),
        ("customer rating[low]", "It has a rating of 1 out of 5.", [], []),
        ("near[Caf\u00e9 Sicilia], area[city centre]", "In the center of the city near Caf\u00e9 Sicilia.", [], []),
        ("near[Burger King]", "By Clare Hall.", ["near"], ["near"]),
        ("colour[red]", "It is blue.", ["colour"], []),
    ],
)
def test_values_are_found_as_people_write_them(prompt: str, text: str, omitted: list[str], invented: list[str]) -> None:
    assert errors(text, prompt) == (omitted, invented)


def test_only_slots_are_a_prompt() -> None:
    assert e2e.slots("Tell me about name[The Eagle]!") == {}
    assert e2e.slots("") == {}


def test_where_the_libraries_are_missing_a_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs sacrebleu and rouge-score .* pip install 'dense-path\[gold\]'"):
        benchmarks.load(E2EConfig(path="any"))


def naive_bleu(texts: list[str], references: list[list[str]]) -> float:
    """Of texts whose words stand apart: clipped n-grams up to four over all texts, and the brevity penalty."""
    matched, total, ours, theirs = [0] * 4, [0] * 4, 0, 0
    for text, several in zip(texts, references, strict=True):
        words, others = text.split(), [reference.split() for reference in several]
        ours += len(words)
        theirs += min((abs(len(words) - len(other)), len(other)) for other in others)[1]
        for n in range(4):
            grams = Counter(tuple(words[i : i + n + 1]) for i in range(len(words) - n))
            most: Counter[tuple[str, ...]] = Counter()
            for other in others:
                most |= Counter(tuple(other[i : i + n + 1]) for i in range(len(other) - n))
            matched[n] += sum((grams & most).values())
            total[n] += sum(grams.values())
    precision = math.exp(sum(math.log(m / t) for m, t in zip(matched, total, strict=True)) / 4)
    return 100 * precision * min(1.0, math.exp(1 - theirs / ours))


def longest(a: list[str], b: list[str]) -> int:
    if not a or not b:
        return 0
    return longest(a[:-1], b[:-1]) + 1 if a[-1] == b[-1] else max(longest(a[:-1], b), longest(a, b[:-1]))


@NEEDED
def test_bleu_and_rouge_take_all_references(tmp_path: Path) -> None:
    rows = [
        {"prompt": "name[The Eagle]", "references": ["the eagle is a nice place", "we like the eagle a lot"]},
        {"prompt": "area[riverside]", "response": "it is by the riverside you know"},
        {"prompt": "name[The Eagle]", "response": "there is the eagle"},
    ]
    config = written(tmp_path, *rows)
    questions = benchmarks.load(config)
    assert [(q.id, len(q.references)) for q in questions] == [("1", 3), ("2", 1)]
    assert {
        len(q.references) for n in (0, 1) for q in benchmarks.load(config.model_copy(update={"skip": n, "prompts": 1}))
    } == {
        3,
        1,
    }, "a prompt is asked with all of its references"
    gold = benchmarks.gold(config)
    assert gold is not None
    assert gold.of_answer is not None
    assert gold.of_answers is not None
    texts = ["the eagle is a place we like", "it is by the riverside we know"]
    answered = list(zip(questions, texts, strict=True))
    references = [list(question.references) for question in questions]
    assert gold.of_answers(answered)["bleu"] == pytest.approx(naive_bleu(texts, references))
    values = [gold.of_answer(question, text) for question, text in answered]
    for value, text, several in zip(values, texts, references, strict=True):
        words = text.split()
        scores = [(longest(words, r.split()), len(r.split())) for r in several]
        assert value["rouge_l"] == pytest.approx(max(2 * n / (len(words) + size) for n, size in scores))
    found = pooled(gold, [*values, gold.of_answer(questions[0], "A pub.")])
    assert found["right"].value == pytest.approx(2 / 3)
    assert found["slot_error"].value == pytest.approx(2 / 3)


@NEEDED
def test_rows_without_slots_or_references_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"row 1 \(id 1\) names no slots"):
        benchmarks.load(written(tmp_path, {"prompt": "Why?", "references": ["So."]}))
    with pytest.raises(UsageError, match=r"row 1 \(id 1\) has neither 'references' nor 'response'"):
        benchmarks.load(written(tmp_path, {"prompt": EAGLE}))
    with pytest.raises(UsageError, match="`references` must be a list of texts"):
        benchmarks.load(written(tmp_path, {"prompt": EAGLE, "references": "So."}))


def test_right_is_without_slot_error() -> None:
    question = Question("1", ("name[The Eagle], area[riverside]",))
    assert e2e.is_right(question, "The Eagle is by the river.") is True
    assert e2e.is_right(question, "The Eagle.") is False
