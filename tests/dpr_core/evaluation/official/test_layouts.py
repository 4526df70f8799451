import json

import pytest

from dpr_core.errors import UsageError
from dpr_core.evaluation.official.layouts import LAYOUTS, questions_of
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.rows import Row

ONE_TURN = [(Question("a", ("Why?",)), ("Because.",)), (Question("b", ("How?\u2028",)), ("So.\n",))]
TWO_TURNS = [(Question("81", ("Write.", "Rewrite.")), ("Text.", "Better text."))]


def rows_of(text: str) -> list[Row]:
    return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.split("\n") if line]


@pytest.mark.parametrize("kind", ["arena-hard", "alpaca-eval", "lima", "mt-bench"])
def test_answers_that_were_written_are_read_back(kind: str) -> None:
    layout = LAYOUTS[kind]
    answered = TWO_TURNS if kind == "mt-bench" else ONE_TURN
    read = layout.answers(rows_of(layout.write("mine", answered)))
    assert list(read) == ["mine"]
    assert list(read["mine"].values()) == [turns for _, turns in answered]
    if kind in ("arena-hard", "mt-bench"):
        assert list(read["mine"]) == [question.id for question, _ in answered]
    else:
        asked = questions_of(layout, [{"instruction": question.prompt} for question, _ in answered])
        assert list(read["mine"]) == [question.id for question in asked]


def test_the_files_are_those_of_the_official_tools() -> None:
    (mt,) = rows_of(LAYOUTS["mt-bench"].write("mine", TWO_TURNS))
    assert mt["question_id"] == 81
    assert mt["choices"] == [{"index": 0, "turns": ["Text.", "Better text."]}]
    arena = rows_of(LAYOUTS["arena-hard"].write("mine", ONE_TURN))
    assert arena[0]["messages"][-1] == {"role": "assistant", "content": {"answer": "Because."}}
    alpaca = rows_of(LAYOUTS["alpaca-eval"].write("mine", ONE_TURN))
    assert alpaca[0] == {"instruction": "Why?", "output": "Because.", "generator": "mine"}


@pytest.mark.parametrize(
    ("kind", "row", "turns"),
    [
        ("mt-bench", {"question_id": 81, "turns": ["Write.", "Rewrite."]}, ("Write.", "Rewrite.")),
        ("arena-hard", {"question_id": "a", "turns": [{"content": "Why?"}]}, ("Why?",)),
        ("arena-hard", {"uid": "a", "prompt": "Why?"}, ("Why?",)),
        ("alpaca-eval", {"instruction": "Why?", "dataset": "koala"}, ("Why?",)),
        ("lima", {"conversations": ["Why?", "Because."]}, ("Why?",)),
        ("lima", {"prompt": "Why?"}, ("Why?",)),
    ],
)
def test_questions_of_every_schema(kind: str, row: Row, turns: tuple[str, ...]) -> None:
    assert [question.turns for question in questions_of(LAYOUTS[kind], [row])] == [turns]


@pytest.mark.parametrize(
    ("kind", "rows", "expected"),
    [
        ("mt-bench", [{"question_id": 81}], "row 1 has no 'turns'"),
        ("mt-bench", [{"question_id": 81, "turns": ["Write.", " "]}], "question 81: `turns` must be"),
        ("mt-bench", [{"question_id": 81, "turns": ["W."]}] * 2, "MT-Bench question 81 stands twice"),
        ("arena-hard", [{"prompt": "Why?"}], "neither uid nor question_id"),
        ("alpaca-eval", [{"prompt": "Why?"}], "not AlpacaEval instructions"),
        ("lima", [{"text": "Why?"}], "LIMA prompt 1 has none of"),
        ("arena-hard", [{"uid": "a", "prompt": ["Why?"]}], "Arena-Hard question a: `prompt` must be text, not list"),
        ("arena-hard", [{"uid": "a", "prompt": " "}], "Arena-Hard question a: `prompt` is empty"),
        ("arena-hard", [{"question_id": "a", "turns": []}], r"question a has no turns\[0\].content"),
        ("alpaca-eval", [{"instruction": 5}], "row 1: `instruction` must be text, not int"),
        ("alpaca-eval", [{"instruction": "Why?"}] * 2, "AlpacaEval question .* stands twice"),
        ("mt-bench", [{"question_id": 81, "turns": ["\ud800"]}], "question 81: `turns` holds half of a surrogate pair"),
    ],
)
def test_a_file_of_another_schema_is_refused(kind: str, rows: list[Row], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        questions_of(LAYOUTS[kind], rows)


def test_an_answer_that_stands_twice_is_refused() -> None:
    rows = rows_of(LAYOUTS["arena-hard"].write("mine", ONE_TURN))
    with pytest.raises(UsageError, match="stands twice"):
        LAYOUTS["arena-hard"].answers([*rows, rows[0]])


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        (
            "mt-bench",
            {"question_id": 1, "model_id": "m", "choices": []},
            r"of m to question 1 has no choices\[0\].turns",
        ),
        ("mt-bench", {"question_id": 1, "model_id": "m", "choices": [{"turns": "text"}]}, "must be a list of texts"),
        ("mt-bench", {"question_id": 1, "model_id": "m", "choices": [{"turns": [None]}]}, "must be text, not NoneType"),
        ("arena-hard", {"uid": "a", "model": "m", "messages": []}, r"question a has no messages\[-1\].content"),
        ("arena-hard", {"uid": "a", "model": "m", "messages": [{"content": {}}]}, "question a has no answer"),
        ("arena-hard", {"uid": "a", "model": "m", "choices": [{"turns": []}]}, "question a has no choices"),
        ("alpaca-eval", {"instruction": "Why?", "generator": "m", "output": 3}, "must be text, not int"),
    ],
)
def test_an_answer_of_another_schema_is_refused(kind: str, row: Row, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        LAYOUTS[kind].answers([row])


def test_an_empty_answer_is_an_answer() -> None:
    assert LAYOUTS["alpaca-eval"].answers([{"instruction": "Why?", "generator": "m", "output": ""}])["m"].popitem()[
        1
    ] == ("",)
