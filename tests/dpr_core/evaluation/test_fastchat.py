import json
from pathlib import Path
from typing import Any

import pytest

from dpr_core.errors import UsageError
from dpr_core.evaluation.fastchat import FastChatTemplate
from dpr_core.evaluation.prompts import plain
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.rate import Turn
from dpr_core.evaluation.rows import read_rows

SHARED = Path(__file__).parents[4] / "shared" / "bench" / "mt_bench"


def row(name: str, template: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "type": "single",
        "system_prompt": "Judge." if "multi" in name else "",
        "prompt_template": template,
        "output_format": "[[rating]]",
    } | changes


ROWS = [
    row("pair-v2", "{question} {answer_a} {answer_b}", output_format="[[A]]"),
    row("single-v1", "Q {question} A {answer} {{kept}}"),
    row("single-math-v1", "Q {question} R {ref_answer_1} A {answer}"),
    row("single-v1-multi-turn", "{question_1}/{answer_1}/{question_2}/{answer_2}"),
    row("single-math-v1-multi-turn", "{ref_answer_1}+{ref_answer_2}: {question_2}/{answer_2}"),
]

PLAIN = Question(id="81", turns=("Write.", "Rewrite."))
MATH = Question(id="111", turns=("Add.", "Double."), references=("3", "6"))


def prompts(path: Path, rows: list[dict[str, Any]] = ROWS) -> FastChatTemplate:
    file = path / "judge_prompts.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return FastChatTemplate.read_from(file)


def test_the_template_goes_by_turn_and_reference(tmp_path: Path) -> None:
    filled = prompts(tmp_path)
    turns = [Turn(question, answers) for question in (PLAIN, MATH) for answers in (("a",), ("a", "b"))]
    assert [(filled.name(turn), filled.shown(turn)) for turn in turns] == [
        ("single-v1", "Q Write. A a {kept}"),
        ("single-v1-multi-turn", "Write./a/Rewrite./b"),
        ("single-math-v1", "Q Add. R 3 A a"),
        ("single-math-v1-multi-turn", "3+6: Double./b"),
    ]
    assert filled.messages(turns[0]) == [{"role": "user", "content": "Q Write. A a {kept}"}]
    assert filled.messages(turns[1])[0] == {"role": "system", "content": "Judge."}


def test_what_looks_like_a_field_inside_a_text_stays_as_it_is(tmp_path: Path) -> None:
    hostile = "{question} {answer} {{x}} {ref_answer_1} {0} \\1"
    question = Question(id="q", turns=("{answer}", "{answer_1}"))
    filled = prompts(tmp_path)
    assert filled.shown(Turn(question, (hostile,))) == f"Q {{answer}} A {hostile} {{kept}}"
    second = filled.shown(Turn(question, ("{answer_2}", hostile)))
    assert second == f"{{answer}}/{{answer_2}}/{{answer_1}}/{hostile}"


def test_a_reply_is_read_as_fastchat_reads_it(tmp_path: Path) -> None:
    read = prompts(tmp_path).score
    assert [read(text) for text in ("Rating: [[7]]", "[[7.5]] or [[3]]", "[4]", "[4] but [[5]]")] == [7, 7.5, 4, 5]
    assert [read(text) for text in ("seven", "[[0]]", "[[11]]", "")] == [None] * 4


def test_a_third_turn_is_refused(tmp_path: Path) -> None:
    question = Question(id="q", turns=("a", "b", "c"))
    with pytest.raises(UsageError, match="question q has more than 2 turns"):
        prompts(tmp_path).messages(Turn(question, ("1", "2", "3")))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (ROWS[:3], "no judge prompt called single-math-v1-multi-turn"),
        ([*ROWS, ROWS[1]], "single-v1 stands twice"),
        ([{"question_id": 1}], "these are not FastChat's judge prompts: row 1 has no 'name'"),
        ([*ROWS[:1], row("single-v1", "{question}"), *ROWS[2:]], r"single-v1 has no \{answer\}"),
        ([*ROWS[:1], row("single-v1", "{answer} {answr}"), *ROWS[2:]], r"has the field \{answr\}; known here: answer"),
        ([*ROWS[:1], row("single-v1", "{answer} {ref_answer_1}"), *ROWS[2:]], r"has the field \{ref_answer_1\}"),
        ([*ROWS[:1], row("single-v1", "{answer}", system_prompt=None), *ROWS[2:]], "has no text `system_prompt`"),
        ([*ROWS[:1], row("single-v1", "{answer}", output_format="[[A]]"), *ROWS[2:]], r"asks for '\[\[A\]\]'"),
    ],
)
def test_a_file_that_will_not_do_is_refused_in_a_sentence(
    tmp_path: Path, rows: list[dict[str, Any]], words: str
) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        prompts(tmp_path, rows)
    assert "judge_prompts.jsonl" in str(caught.value)


@pytest.mark.skipif(not SHARED.exists(), reason="needs the official files")
def test_the_official_prompts_make_the_official_requests() -> None:
    filled = FastChatTemplate.read_from(SHARED / "judge_prompts.jsonl")
    references = {
        each["question_id"]: tuple(each["choices"][0]["turns"])
        for each in read_rows(SHARED / "reference_answer" / "gpt-4.jsonl")
    }
    questions = {
        each["question_id"]: Question(
            str(each["question_id"]), tuple(each["turns"]), references=references.get(each["question_id"], ())
        )
        for each in read_rows(SHARED / "question.jsonl")
    }
    judged = read_rows(SHARED / "model_judgment" / "orpo_mix_gpt-4_single.jsonl")
    shown = {(each["question_id"], each["turn"]): each for each in judged}
    same = 0
    for name, question in questions.items():
        conversation = shown[name, 2]["user_prompt"].partition("<|The Start of Assistant A's")[2]
        texts = conversation.removesuffix("\n\n<|The End of Assistant A's Conversation with User|>")
        first, second = texts.split("\n\n### Assistant A:\n")[1:]
        first = first.removesuffix(f"\n\n### User:\n{question.turns[1]}")
        for number, answers in ((1, (first,)), (2, (first, second))):
            turn = Turn(question, answers)
            assert filled.name(turn) == shown[name, number]["judge"][1]
            official = shown[name, number]["user_prompt"]
            assert filled.shown(turn).replace(" ", "") == official.replace(" ", "")
            # Almost half of these answers hold chat control tokens, which are broken here and were not there.
            if answers == tuple(map(plain, answers)):
                assert filled.shown(turn) == official
                same += 1
    assert same > 80
