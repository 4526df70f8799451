"""Questions and answers in the benchmarks' own files, read into this project's and written back."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from dpr_core.benchmarks.base import Question
from dpr_core.errors import UsageError
from dpr_core.official.files import Row, need, unique

Answers = dict[str, tuple[str, ...]]
"""By question id, a text for each turn."""


@dataclass(frozen=True)
class Layout:
    """One benchmark's files."""

    title: str
    prompts: int
    questions: Callable[[list[Row]], list[Question]]
    answers: Callable[[list[Row]], dict[str, Answers]]
    """By model."""
    write: Callable[[str, Iterable[tuple[Question, tuple[str, ...]]]], str]
    """The answers of a model as the text of an official file."""


def _mt_bench_questions(rows: list[Row]) -> list[Question]:
    need(rows, ("question_id", "turns"), "MT-Bench questions")
    return [Question(str(row["question_id"]), _turns(row["turns"], row["question_id"])) for row in rows]


def _turns(turns: object, where: object) -> tuple[str, ...]:
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise UsageError(f"question {where}: `turns` must be a list of texts, none of them empty")
    return tuple(turns)


def _mt_bench_answers(rows: list[Row]) -> dict[str, Answers]:
    need(rows, ("question_id", "model_id", "choices"), "MT-Bench answers")
    found = unique(rows, lambda row: (row["model_id"], str(row["question_id"])), "answer")
    return _by_model({key: tuple(row["choices"][0]["turns"]) for key, row in found.items()})


def _mt_bench_write(model: str, answered: Iterable[tuple[Question, tuple[str, ...]]]) -> str:
    return _lines(
        {
            "question_id": int(question.id) if question.id.isdigit() else question.id,
            "answer_id": _short_hash(model, question.id),
            "model_id": model,
            "choices": [{"index": 0, "turns": list(turns)}],
        }
        for question, turns in answered
    )


def arena_question(row: Row) -> Question:
    """Of the newer schema (`uid`, `prompt`) or of the older one (`question_id`, `turns`)."""
    name = row.get("uid", row.get("question_id"))
    if name is None:
        raise UsageError(
            f"an Arena-Hard question has neither uid nor question_id (it has {', '.join(sorted(row)[:8])})"
        )
    if "prompt" in row:
        return Question(str(name), (str(row["prompt"]),))
    need([row], ("turns",), "Arena-Hard questions")
    return Question(str(name), (str(row["turns"][0]["content"]),))


def arena_answer(row: Row) -> tuple[tuple[str, str], str]:
    """(model, question id) and the text: messages in the newer schema, FastChat's choices in the older one."""
    name = row.get("uid", row.get("question_id"))
    model = row.get("model", row.get("model_id"))
    if name is None or model is None:
        raise UsageError(f"an Arena-Hard answer names no question or no model (it has {', '.join(sorted(row)[:8])})")
    if "messages" in row:
        content = row["messages"][-1]["content"]
        return (str(model), str(name)), str(content["answer"] if isinstance(content, dict) else content)
    need([row], ("choices",), "Arena-Hard answers")
    return (str(model), str(name)), str(row["choices"][0]["turns"][0]["content"])


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
    return [Question(_short_hash(row["instruction"]), (row["instruction"],)) for row in rows]


def _alpaca_answers(rows: list[Row]) -> dict[str, Answers]:
    need(rows, ("instruction", "output", "generator"), "AlpacaEval outputs")
    found = unique(rows, lambda row: (row["generator"], _short_hash(row["instruction"])), "output")
    return _by_model({key: (row["output"],) for key, row in found.items()})


def _alpaca_write(model: str, answered: Iterable[tuple[Question, tuple[str, ...]]]) -> str:
    rows = [{"instruction": q.prompt, "output": turns[0], "generator": model} for q, turns in answered]
    return json.dumps(rows, ensure_ascii=False, indent=2) + "\n"


def _lima_questions(rows: list[Row]) -> list[Question]:
    """The dataset's `conversations`, or rows with `instruction` or `prompt`."""
    texts = []
    for number, row in enumerate(rows, start=1):
        talk = row.get("conversations")
        text = talk[0] if isinstance(talk, list) and talk else row.get("instruction", row.get("prompt"))
        if not isinstance(text, str) or not text.strip():
            raise UsageError(f"LIMA prompt {number} has none of conversations, instruction and prompt")
        texts.append(text)
    return [Question(_short_hash(text), (text,)) for text in texts]


LAYOUTS: Mapping[str, Layout] = {
    "mt-bench": Layout("MT-Bench", 80, _mt_bench_questions, _mt_bench_answers, _mt_bench_write),
    "arena-hard": Layout(
        "Arena-Hard", 500, lambda rows: [arena_question(row) for row in rows], _arena_answers, _arena_write
    ),
    "alpaca-eval": Layout("AlpacaEval", 805, _alpaca_questions, _alpaca_answers, _alpaca_write),
    "lima": Layout("LIMA", 300, _lima_questions, _alpaca_answers, _alpaca_write),
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
