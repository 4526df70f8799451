import json
from pathlib import Path
from typing import Any

import pytest

from dpr_core.config.base import parse
from dpr_core.config.gold import WordProblemsConfig
from dpr_core.errors import UsageError
from dpr_core.evaluation import benchmarks
from dpr_core.evaluation.gold.measures import answers_cut, cut_warning, pooled
from dpr_core.evaluation.questions import Question

ROWS = [
    {
        "id": "a",
        "question": "9 shelves of 56 books?",
        "response": "56 * 9 = 504. The answer is 504.",
        "answer": "504.0",
    },
    {"id": 7, "question": "A third of 4?", "response": "4 / 3 = 1.3333. The answer is 1.3333."},
]


def written(folder: Path, rows: list[dict[str, Any]], name: str = "problems.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(path: str, **settings: Any) -> list[Question]:
    return benchmarks.load(WordProblemsConfig(path=path, **settings))


def test_a_row_is_a_question_with_its_result(tmp_path: Path) -> None:
    assert load(written(tmp_path, ROWS)) == [
        Question("a", ("9 shelves of 56 books?",), reference="504.0"),
        Question("7", ("A third of 4?",), reference="1.3333"),
    ]
    renamed = [{"prompt": "2 + 2?", "reference": 4}]
    assert load(written(tmp_path, renamed)) == [Question("1", ("2 + 2?",), reference="4")]
    columns = {"prompt": "q", "answer": "a"}
    assert load(written(tmp_path, [{"q": "2 + 2?", "a": 4.0}]), columns=columns)[0].reference == "4.0"


def test_csv_and_parquet_are_read_by_their_suffix(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    table = tmp_path / "rows.csv"
    table.write_text('question,answer\n"2 + 2, as text?",4\n')
    assert load(str(table)) == [Question("1", ("2 + 2, as text?",), reference="4")]
    parquet.write_table(pa.table({"question": ["2 + 2?"], "answer": [4]}), tmp_path / "rows.parquet")
    assert load(str(tmp_path / "rows.parquet")) == [Question("1", ("2 + 2?",), reference="4")]
    table.write_text('question,answer\n"2 + 2?",4,5\n')
    with pytest.raises(UsageError, match=r"rows.csv: row 1 has more values than columns"):
        load(str(table))


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"question": "Why?", "answer": "because"}, "row 2 (id 2) has no number as its result but 'because'"),
        ({"question": "Why?", "response": "So."}, "row 2 (id 2) has no number as its result; give it one"),
        ({"text": "Why?", "answer": "1"}, "row 2 has no 'question' (it has text, answer)"),
        ({"id": "a", "question": "Why?", "answer": "1"}, "row a stands twice"),
        ({"question": ["Why?"], "answer": "1"}, "row 2: `question` must be text, not list"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: dict[str, Any], complaint: str) -> None:
    path = written(tmp_path, [ROWS[0], row])
    with pytest.raises(UsageError) as caught:
        load(path)
    assert complaint in str(caught.value)
    assert path in str(caught.value)


def test_some_prompts_are_tuned_on_and_others_asked(tmp_path: Path) -> None:
    path = written(tmp_path, [{"question": f"{n} + 1?", "answer": n + 1} for n in range(10)])
    tuned = load(path, prompts=4)
    assert len(tuned) == 4
    assert not set(tuned) & set(load(path, skip=4))
    assert len(set(load(path, skip=4)) | set(tuned)) == 10
    with pytest.raises(UsageError, match=r"has 10 prompts, fewer than skip and prompts ask for \(12\)"):
        load(path, skip=8, prompts=4)


def test_either_a_file_or_a_place_on_the_hub_is_named() -> None:
    with pytest.raises(UsageError, match="give the `path` of a local file, or `repository` and `file` of the hub"):
        parse(WordProblemsConfig, {"repository": "someone/problems"}, "here")


def test_a_relative_file_is_looked_for_in_the_data_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, data = tmp_path / "here", tmp_path / "data"
    here.mkdir()
    data.mkdir()
    monkeypatch.chdir(here)
    config = WordProblemsConfig(path="problems.jsonl")
    with pytest.raises(UsageError, match=rf"there is no such benchmark file \(looked for in {here}; DPR_REAL_DATA can"):
        benchmarks.load(config)
    monkeypatch.setenv("DPR_REAL_DATA", str(data))
    with pytest.raises(UsageError, match=rf"\(looked for in {here} and in DPR_REAL_DATA, {data}\)"):
        benchmarks.with_content_hash(config)
    written(data, ROWS)
    pinned = benchmarks.with_content_hash(config)
    assert [question.id for question in benchmarks.load(pinned)] == ["a", "7"]
    written(here, ROWS[:1])
    assert [question.id for question in benchmarks.load(config)] == ["a"]


def test_measures_are_pooled_over_answers_by_hand() -> None:
    gold = benchmarks.gold(WordProblemsConfig(path="any"))
    assert gold is not None
    question = Question("a", ("?",), reference="504")
    texts = ["56 * 9 = 504. The answer is 504.", "5 * 9 = 45. 45 + 1 = 45. 1 + 1 = 3. The answer is 45.", "No idea."]
    values = [gold.of_answer(question, text) for text in texts]
    assert [v["right"] for v in values] == [1, 0, 0]
    assert [v["stated"] for v in values] == [1, 1, 0]
    assert [v["equations"] for v in values] == [1, 3, 0]
    found = pooled(gold, values)
    assert list(found) == ["right", "equation_right", "stated"]
    assert [estimate.value for estimate in found.values()] == pytest.approx([1 / 3, 2 / 4, 2 / 3])
    low, high = found["right"].low, found["right"].high
    assert low is not None
    assert high is not None
    assert 0 <= low < 1 / 3 < high <= 1
    assert pooled(gold, [{"right": 1.0}])["right"] == (1.0, None, None)


def test_measures_of_answers_that_were_cut_are_counted() -> None:
    rows = [{"cut": True, "gold": {"right": 0.0}}, {"cut": False, "gold": {"right": 1.0}}, {"cut": True}]
    assert answers_cut(rows) == 1
    assert "1 of the 3 answers were cut" in str(cut_warning(1, 3))
    assert cut_warning(0, 3) is None
