import json
from pathlib import Path

import pytest

from dpr_core.config.gold import GSM8KConfig
from dpr_core.errors import UsageError
from dpr_core.evaluation import benchmarks
from dpr_core.evaluation.gold.arithmetic import equations
from dpr_core.evaluation.gold.measures import pooled

ANSWER = "She has 2*3 = <<2*3=6>>6 eggs.\nShe earns 6*200=$<<6*200=1200>>1,200.\n#### 1,200"
FILE = Path(__file__).parents[5] / "shared" / "bench" / "sft_data" / "gsm8k_test.jsonl"


def test_rows_are_as_published_and_the_primary_measure_is_the_share_of_right_equations(tmp_path: Path) -> None:
    path = tmp_path / "gsm8k.jsonl"
    path.write_text(json.dumps({"question": "Eggs?", "answer": ANSWER}) + "\n")
    config = GSM8KConfig(path=str(path))
    (question,) = benchmarks.load(config)
    assert (question.id, question.prompt, question.reference) == ("1", "Eggs?", "1,200")
    is_right, gold = benchmarks.checker(config), benchmarks.gold(config)
    assert gold is not None
    assert gold.of_answer is not None
    assert is_right(question, ANSWER) is True
    wrong = "2*3 = <<2*3=6>>6, 6*200 = <<6*200=1300>>1300, so 1300.\n#### 1300"
    assert is_right(question, wrong) is False
    found = pooled(gold, [gold.of_answer(question, text) for text in (ANSWER, wrong, "Hm.")])
    assert next(iter(found)) == "equation_right"
    assert [e.value for e in found.values()] == pytest.approx([3 / 4, 1 / 3, 2 / 3])
    path.write_text(json.dumps({"question": "Eggs?", "answer": "Many."}) + "\n")
    with pytest.raises(UsageError, match=r"row 1 \(id 1\) has no number as its result but 'Many.'"):
        benchmarks.load(config)


@pytest.mark.skipif(not FILE.is_file(), reason="the published file is not here")
def test_the_published_answers_are_right_and_so_are_nearly_all_of_their_equations() -> None:
    rows = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    questions = benchmarks.load(GSM8KConfig(path=str(FILE)))
    is_right = benchmarks.checker(GSM8KConfig(path=str(FILE)))
    assert len(questions) == 1319
    assert all(is_right(q, row["answer"]) for q, row in zip(questions, rows, strict=True))
    hold = [each for row in rows for each in equations(row["answer"])]
    assert sum(hold) / len(hold) > 0.99
