import hashlib
import json
import os
import re
from pathlib import Path

import pytest

from dpr_core.config.data import AdditionsConfig, ShellGameConfig
from dpr_core.config.evaluation import FileBenchmarkConfig, LabBenchmarkConfig
from dpr_core.errors import DensePathError, UsageError
from dpr_core.evaluation import benchmarks
from dpr_core.evaluation.questions import Question


def load(path: Path) -> list[Question]:
    return benchmarks.load(FileBenchmarkConfig(path=str(path)))


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        load(path)
    return str(caught.value)


def test_rows_become_questions(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"id": "a", "prompt": "What is 2+2?", "reference": 4},
        {"prompt": "Sag es auf Deutsch: \u00e9", "system": "Be brief.", "other": [1]},
        {"id": 7, "prompt": "Why?", "reference": " because "},
    ]
    path.write_text("\ufeff" + "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    assert load(path) == [
        Question(id="a", turns=("What is 2+2?",), reference="4"),
        Question(id="3", turns=("Sag es auf Deutsch: \u00e9",), system="Be brief."),
        Question(id="7", turns=("Why?",), reference="because"),
    ]


@pytest.mark.parametrize(
    ("second_line", "complaint"),
    [
        (b"{not json", "line 2: not valid JSON"),
        (b'["prompt"]', "line 2: a JSON object is expected, not list"),
        (b'{"id": "b"}', "line 2: the row has no `prompt`"),
        (b'{"prompt": "  \\n"}', "line 2: the row has no `prompt`"),
        (b'{"prompt": ["x"]}', "line 2: `prompt` must be text, not list"),
        (b'{"prompt": "x", "reference": true}', "line 2: `reference` must be text, not bool"),
        (b'{"prompt": "x", "id": "a"}', "line 2: the id 'a' was already used in line 1"),
        (b'{"prompt": "caf\xe9"}', "line 2: not UTF-8 (byte 16 of the line)"),
        (b'{"prompt": "\\ud800"}', "line 2: `prompt` holds half of a surrogate pair"),
        (b"[" * 100_000, "line 2: not valid JSON"),
        (b'{"prompt": "x", "reference": NaN}', "line 2: not valid JSON: NaN is no number of JSON"),
        (b'{"prompt": "x", "prompt": "y"}', "line 2: the key 'prompt' stands twice in one object; keep the one"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, second_line: bytes, complaint: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"prompt": "fine", "id": "a"}\n' + second_line + b"\n")
    message = refusal(path)
    assert complaint in message
    assert str(path) in message


def test_a_numbered_row_may_not_take_a_given_id(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "x", "id": "2"}\n{"prompt": "y"}\n')
    assert "the id '2' was already used in line 1" in refusal(path)


def test_the_home_folder_can_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "x"}')
    config = FileBenchmarkConfig(path="~/prompts.jsonl")
    assert benchmarks.load(config) == [Question(id="1", turns=("x",))]
    digest = hashlib.sha256(b'{"prompt": "x"}').hexdigest()
    assert benchmarks.with_content_hash(config) == FileBenchmarkConfig(path="~/prompts.jsonl", content=digest)
    with pytest.raises(UsageError, match="there is no such benchmark file"):
        benchmarks.with_content_hash(FileBenchmarkConfig(path="~/absent.jsonl"))


def test_a_file_that_changed_after_its_hash_was_noted_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "x"}')
    pinned = benchmarks.with_content_hash(FileBenchmarkConfig(path=str(path)))
    assert benchmarks.load(pinned) == load(path)
    path.write_text('{"prompt": "y"}')
    with pytest.raises(DensePathError, match=r"prompts\.jsonl changed after its hash was noted"):
        benchmarks.load(pinned)


@pytest.mark.usefixtures("hang_limit")
def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a named pipe"), (Path("/dev/zero"), "a device"), (tmp_path, "a folder")):
        assert f"{path} is {kind}, but a file is needed" in refusal(path)
        with pytest.raises(UsageError, match=f"is {kind}"):
            benchmarks.with_content_hash(FileBenchmarkConfig(path=str(path)))


def test_a_missing_empty_or_unreadable_file_is_refused(tmp_path: Path) -> None:
    assert "there is no such benchmark file" in refusal(tmp_path / "absent.jsonl")
    assert "is a folder, but a file is needed" in refusal(tmp_path)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n \n")
    assert "has no rows" in refusal(empty)


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        ("The answer is 42.", "42"),
        ("First the answer is 1, I think.\nNo, the answer is: Paris.\nGoodbye.", "Paris"),
        ("Some steps.\n\n 3.5 \n", "3.5"),
        ("Done. The answer is ", None),
        (" \n ", None),
        ("", None),
    ],
)
def test_the_result_is_what_the_answer_states_last(answer: str, result: str | None) -> None:
    assert benchmarks.stated_result(answer) == result


def test_right_wrong_and_not_verifiable() -> None:
    question = Question(id="q", turns=("2+2?",), reference="4")
    is_right = benchmarks.checker(FileBenchmarkConfig(path="any"))
    assert is_right(question, "The answer is 4.") is True
    assert is_right(question, "The answer is 5.") is False
    assert is_right(question, "") is False
    assert is_right(Question(id="q", turns=("2+2?",)), "The answer is 4.") is None


def test_only_a_single_turn_question_has_a_prompt() -> None:
    assert Question(id="q", turns=("one",)).prompt == "one"
    with pytest.raises(ValueError, match="question q has 2 turns"):
        _ = Question(id="q", turns=("one", "two")).prompt


LAB = LabBenchmarkConfig(task=AdditionsConfig(modulus=5, operations=4), prompts=30, prompt_seed=3)


def test_references_are_the_sums_of_the_numbers_in_the_prompts() -> None:
    for question in benchmarks.load(LAB):
        numbers = [int(number) for number in re.findall(r"\d+", question.prompt)]
        assert len(numbers) == 5
        assert question.reference == str(sum(numbers) % 5)


def test_references_of_the_other_task_are_where_the_ball_ends() -> None:
    for question in benchmarks.load(LabBenchmarkConfig(task=ShellGameConfig(cups=3, swaps=5), prompts=30)):
        ball, *cups = re.findall(r"\d", question.prompt)
        for a, b in zip(cups[::2], cups[1::2], strict=True):
            ball = {a: b, b: a}.get(ball, ball)
        assert question.reference == ball


def test_the_same_settings_ask_the_same_questions() -> None:
    questions = benchmarks.load(LAB)
    assert questions == benchmarks.load(LAB)
    assert len({question.id for question in questions}) == 30
    other = LAB.model_copy(update={"prompt_seed": 4})
    assert {question.id for question in questions} != {question.id for question in benchmarks.load(other)}


def test_an_answer_is_right_where_it_states_the_result() -> None:
    question = benchmarks.load(LAB)[0]
    assert question.reference is not None
    wrong = (int(question.reference) + 1) % 5
    is_right = benchmarks.checker(LAB)
    assert is_right(question, f"The answer is {question.reference}.") is True
    assert is_right(question, f"The answer is {wrong}.") is False
    assert is_right(question, "I do not know") is False


def test_what_is_tuned_on_training_prompts_never_sees_the_held_out_ones() -> None:
    training = LAB.model_copy(update={"split": "train", "prompts": 200})
    held_out = LAB.model_copy(update={"prompts": 20})
    assert not {q.id for q in benchmarks.load(training)} & {q.id for q in benchmarks.load(held_out)}
