"""Questions and answers in the benchmarks' own files, read into this project's and written back."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dpr_core.errors import UsageError
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.rows import Row, need, text_field, unique

Answers = dict[str, tuple[str, ...]]
"""By question id, a text for each turn."""


@dataclass(frozen=True)
class Layout:
    """One benchmark's files."""

    title: str
    prompts: int
    turns: int
    """Turns of each question."""
    file: str
    """What its tools call the answers of a `{model}`."""
    questions: Callable[[list[Row]], list[Question]]
    answers: Callable[[list[Row]], dict[str, Answers]]
    """By model."""
    write: Callable[[str, Iterable[tuple[Question, tuple[str, ...]]]], str]
    """The answers of a model as the text of an official file."""


def _mt_bench_questions(rows: list[Row]) -> list[Question]:
    """FastChat's `question_id` and `turns`; on the hub the turns are called `prompt`."""
    rows = [{"turns": row["prompt"], **row} if isinstance(row.get("prompt"), list) else row for row in rows]
    need(rows, ("question_id", "turns"), "MT-Bench questions")
    return [
        Question(
            str(row["question_id"]),
            _turns(row["turns"], f"question {row['question_id']}"),
            category=str(row.get("category", "")),
        )
        for row in rows
    ]


def _turns(turns: object, where: str) -> tuple[str, ...]:
    if not isinstance(turns, list | tuple) or not turns or not all(isinstance(t, str) and t.strip() for t in turns):
        raise UsageError(f"{where}: `turns` must be a list of texts, none of them empty")
    return tuple(text_field(turn, "turns", where) for turn in turns)


def _answer(value: object, where: str) -> str:
    """An empty answer is an answer."""
    return text_field(value, "answer", where, may_be_empty=True)


def _part(row: Row, what: str, *path: str | int) -> Any:
    """What stands at a path inside a row, such as choices[0].turns."""
    value: Any = row
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
            raise UsageError(f"{what} has no {name}") from None
    return value


def _mt_bench_answers(rows: list[Row]) -> dict[str, Answers]:
    need(rows, ("question_id", "model_id", "choices"), "MT-Bench answers")
    found = unique(rows, lambda row: (str(row["model_id"]), str(row["question_id"])), "answer")
    texts = {}
    for key, row in found.items():
        where = f"the answer of {key[0]} to question {key[1]}"
        turns = _part(row, where, "choices", 0, "turns")
        if not isinstance(turns, list):
            raise UsageError(f"{where}: `turns` must be a list of texts")
        texts[key] = tuple(_answer(turn, where) for turn in turns)
    return _by_model(texts)


def _mt_bench_write(model: str, answered: Iterable[tuple[Question, tuple[str, ...]]]) -> str:
    return _lines(
        {
            "question_id": mt_bench_id(question.id),
            "answer_id": _short_hash(model, question.id),
            "model_id": model,
            "choices": [{"index": 0, "turns": list(turns)}],
        }
        for question, turns in answered
    )


def mt_bench_id(name: str) -> int | str:
    """Its own questions are called by numbers."""
    return int(name) if name.isdecimal() else name


def arena_question(row: Row) -> Question:
    """Of the newer schema (`uid`, `prompt`) or of the older one (`question_id`, `turns`)."""
    name = row.get("uid", row.get("question_id"))
    if name is None:
        raise UsageError(
            f"an Arena-Hard question has neither uid nor question_id (it has {', '.join(sorted(row)[:8])})"
        )
    where, category = f"Arena-Hard question {name}", str(row.get("category", ""))
    if "prompt" in row:
        return Question(str(name), (text_field(row["prompt"], "prompt", where),), category=category)
    need([row], ("turns",), "Arena-Hard questions")
    return Question(
        str(name), (text_field(_part(row, where, "turns", 0, "content"), "content", where),), category=category
    )


def arena_answer(row: Row) -> tuple[tuple[str, str], str]:
    """(model, question id) and the text: messages in the newer schema, FastChat's choices in the older one."""
    name = row.get("uid", row.get("question_id"))
    model = row.get("model", row.get("model_id"))
    if name is None or model is None:
        raise UsageError(f"an Arena-Hard answer names no question or no model (it has {', '.join(sorted(row)[:8])})")
    where = f"the answer of {model} to question {name}"
    if "messages" in row:
        content = _part(row, where, "messages", -1, "content")
        text = _part(content, where, "answer") if isinstance(content, dict) else content
        return (str(model), str(name)), _answer(text, where)
    need([row], ("choices",), "Arena-Hard answers")
    return (str(model), str(name)), _answer(_part(row, where, "choices", 0, "turns", 0, "content"), where)


def _arena_answers(rows: list[Row]) -> dict[str, Answers]:
    read = [arena_answer(row) for row in rows]
    unique([{"key": key} for key, _ in read], lambda row: row["key"], "answer")
    return _by_model({key: (text,) for key, text in read})


def _arena_write(model: str, answered: Iterable[tuple[Question, tuple[str, ...]]]) -> str:
    return _lines(
        {
            "uid": question.id,
            "ans_id": _short_hash(model, question.id),
            "model": model,
            "messages": [
                {"role": "user", "content": question.prompt},
                {"role": "assistant", "content": {"answer": turns[0]}},
            ],
        }
        for question, turns in answered
    )


def _alpaca_questions(rows: list[Row]) -> list[Question]:
    need(rows, ("instruction",), "AlpacaEval instructions")
    return [
        _prompt(text_field(row["instruction"], "instruction", f"row {number}"), str(row.get("dataset", "")))
        for number, row in enumerate(rows, start=1)
    ]


def _prompt(text: str, category: str = "") -> Question:
    return Question(_short_hash(text), (text,), category=category)


def _alpaca_answers(rows: list[Row]) -> dict[str, Answers]:
    need(rows, ("instruction", "output", "generator"), "AlpacaEval outputs")
    asked = [text_field(row["instruction"], "instruction", f"row {number}") for number, row in enumerate(rows, start=1)]
    keyed = [{**row, "id": _short_hash(text)} for row, text in zip(rows, asked, strict=True)]
    found = unique(keyed, lambda row: (str(row["generator"]), row["id"]), "output")
    return _by_model(
        {key: (_answer(row["output"], f"the answer of {key[0]} to {key[1]}"),) for key, row in found.items()}
    )


def _alpaca_write(model: str, answered: Iterable[tuple[Question, tuple[str, ...]]]) -> str:
    rows = [
        {
            "instruction": q.prompt,
            "output": turns[0],
            "generator": model,
            **({"dataset": q.category} if q.category else {}),
        }
        for q, turns in answered
    ]
    return json.dumps(rows, ensure_ascii=False, indent=2) + "\n"


def _lima_questions(rows: list[Row]) -> list[Question]:
    """The dataset's `conversations`, or rows with `instruction` or `prompt`."""
    texts = []
    for number, row in enumerate(rows, start=1):
        talk = row.get("conversations")
        text = talk[0] if isinstance(talk, list) and talk else row.get("instruction", row.get("prompt"))
        if not isinstance(text, str) or not text.strip():
            raise UsageError(f"LIMA prompt {number} has none of conversations, instruction and prompt")
        texts.append(text_field(text, "prompt", f"LIMA prompt {number}"))
    return [_prompt(text) for text in texts]


LAYOUTS: Mapping[str, Layout] = {
    "mt-bench": Layout("MT-Bench", 80, 2, "{model}.jsonl", _mt_bench_questions, _mt_bench_answers, _mt_bench_write),
    "arena-hard": Layout(
        "Arena-Hard",
        500,
        1,
        "{model}.jsonl",
        lambda rows: [arena_question(row) for row in rows],
        _arena_answers,
        _arena_write,
    ),
    "alpaca-eval": Layout(
        "AlpacaEval", 805, 1, "model_outputs.json", _alpaca_questions, _alpaca_answers, _alpaca_write
    ),
    "lima": Layout("LIMA", 300, 1, "model_outputs.json", _lima_questions, _alpaca_answers, _alpaca_write),
}


def questions_of(layout: Layout, rows: list[Row]) -> list[Question]:
    """The questions, each id once."""
    questions = layout.questions(rows)
    unique([{"id": question.id} for question in questions], lambda row: row["id"], f"{layout.title} question")
    return questions


def _by_model(texts: Mapping[tuple[str, str], tuple[str, ...]]) -> dict[str, Answers]:
    models: dict[str, Answers] = {}
    for (model, question), turns in texts.items():
        models.setdefault(model, {})[question] = turns
    return models


def _lines(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _short_hash(*parts: str) -> str:
    """AlpacaEval and LIMA give their prompts no ids."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:22]
