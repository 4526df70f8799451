from pathlib import Path

import pytest

from dpr_core.config.official import MTBenchConfig
from dpr_core.evaluation.official import references
from dpr_core.evaluation.public_sets import load
from dpr_core.evaluation.questions import Question

FILES = Path(__file__).parents[5] / "shared" / "bench" / "mt_bench"


def test_questions_without_a_reference_that_they_need_are_named() -> None:
    asked = [Question("81", ("?",), category="writing"), Question("104", ("?",), category="math")]
    (said,) = references.warnings(asked)
    assert said.startswith("1 questions of math have no reference answer and are judged without one, such as 104;")
    assert references.warnings(asked[:1]) == []


def test_a_corrected_reference_is_not_complained_of(monkeypatch: pytest.MonkeyPatch) -> None:
    old = Question("104", ("?",), references=("one", "two"), category="math")
    monkeypatch.setitem(references.WRONG, "104", references._digest(old.references))
    assert "to questions 104 are FastChat's own" in references.wrong_warnings([old])[0]
    new = Question("104", ("?",), references=("one", "three"), category="math")
    elsewhere = Question("105", ("?",), references=old.references, category="math")
    assert references.warnings([new, elsewhere]) == []


@pytest.mark.skipif(not FILES.is_dir(), reason="the official files are not beside the repository")
def test_the_official_file_has_all_of_those_that_are_known_to_be_wrong() -> None:
    given = MTBenchConfig(
        path=str(FILES / "question.jsonl"), references=str(FILES / "reference_answer" / "gpt-4.jsonl")
    )
    assert references.wrong(load(given)) == list(references.WRONG)
