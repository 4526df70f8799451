"""Arena-Hard's judge prompts, of a checkout of its repository, and its `model_judgment` files.

A setting file (config/arena-hard-v2.0.yaml) holds the template and the patterns of labels; what the judge is told for
each category stands in utils/judge_utils.py beside it, of which only literals are read.
"""

import ast
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from dpr_core.errors import UsageError
from dpr_core.evaluation.ask import REFUSED
from dpr_core.evaluation.endpoint import Messages
from dpr_core.evaluation.official.arena_hard import LABELS, SPELLED_BACKWARDS
from dpr_core.evaluation.pairwise import Comparison, Game, Verdict
from dpr_core.evaluation.prompts import FIELD, filled, plain
from dpr_core.evaluation.protocols.protocol import JudgingProtocol, Played, in_file_name, part, read_text
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.reading import without_thinking
from dpr_core.evaluation.rows import Row

CATEGORIES = Path("utils") / "judge_utils.py"
"""From the root of the repository."""

SETTINGS = "JUDGE_SETTINGS"
FIELDS = {"QUESTION", "ANSWER_A", "ANSWER_B"}


class ArenaHardProtocol(JudgingProtocol):
    """Two games with the places swapped, the baseline first in the first one, and five labels."""

    benchmark = "arena-hard"
    published = "lmarena/arena-hard-auto at 196f6b8"
    known: ClassVar = {
        "arena-hard-v0.1": "f9b328a73a787c199a26aead05000cd5d34bf5bc505f24afe67e025eccad7984",
        "arena-hard-v2.0": "b1fd053f9b2faead8cfc9afe8d26bf58cbce5ff8c4ce2774eebb25000ffec901",
    }

    def __init__(self, settings: Mapping[str, Any], categories: Mapping[str, Any], where: str) -> None:
        self._template = part(settings, "prompt_template", str, where)
        self._patterns = [_pattern(each, where) for each in part(settings, "regex_patterns", list, where)]
        self._version = part(settings, "bench_name", str, where)
        used = {found for found in FIELD.findall(self._template) if found}
        if used != FIELDS:
            raise UsageError(f"{where}: `prompt_template` has the fields {sorted(used)}, not {sorted(FIELDS)}")
        self._told = {name: part(each, "system_prompt", str, where) for name, each in categories.items()}
        self._baselines = {name: part(each, "baseline", str, where) for name, each in categories.items()}
        super().__init__(
            self._version,
            {"template": self._template, "patterns": [each.pattern for each in self._patterns], "told": self._told},
            part(settings, "judge_model", str, where),
            {
                "temperature": float(part(settings, "temperature", (int, float), where)),
                "max_tokens": part(settings, "max_tokens", int, where),
            },
        )

    @classmethod
    def read_from(cls, file: Path, settings: Mapping[str, Any]) -> "ArenaHardProtocol":
        code = file.resolve().parent.parent / CATEGORIES
        categories = _literals(read_text(code), code).get(SETTINGS)
        if not isinstance(categories, dict) or not all(isinstance(each, dict) for each in categories.values()):
            raise UsageError(f"{code} has no {SETTINGS} that says what the judge is told for each category")
        return cls(settings, categories, f"{file} with {code.name}")

    def refuse(self, question: Question) -> None:
        if len(question.turns) != 1:
            raise UsageError(f"question {question.id} has {len(question.turns)} turns; Arena-Hard's prompts know one")
        self._category(question)

    def baseline(self, question: Question) -> str:
        return self._baselines[self._category(question)]

    def messages(self, comparison: Comparison) -> Messages:
        question, first, second = comparison.question, comparison.first, comparison.second
        texts = {"QUESTION": question.prompt, "ANSWER_A": first.turns[0], "ANSWER_B": second.turns[0]}
        shown = filled(self._template, {name: plain(text) for name, text in texts.items()})
        # A question that is only counted has no category yet.
        told = self._told.get(question.category or self._version) or max(self._told.values(), key=len)
        return [{"role": "system", "content": told}, {"role": "user", "content": shown}]

    def label(self, reply: str) -> str | None:
        """The last that the first pattern finds; in thinking there is none."""
        text = without_thinking(reply).upper()
        for pattern in self._patterns:
            if found := [each for each in pattern.findall(text) if each]:
                return found[-1] if found[-1] in {*LABELS, *SPELLED_BACKWARDS} else None
        return None

    def verdict(self, label: str) -> Verdict:
        label = SPELLED_BACKWARDS.get(label, label)
        if label not in LABELS:
            raise ValueError(f"{label!r} is no label of Arena-Hard")
        points, _ = LABELS[label]
        return {1.0: Verdict.FIRST, 0.0: Verdict.SECOND}.get(points, Verdict.TIE)

    def rows(self, played: Iterable[Played], judge: str) -> list[Row]:
        return [
            {
                "uid": each.pair.question.id,
                "category": self._category(each.pair.question),
                "judge": judge,
                "model": each.candidate,
                "baseline": each.baseline,
                "games": [self._game(each, candidate_first) for candidate_first in (False, True)],
            }
            for each in played
        ]

    def file(self, candidate: str, judge: str) -> str:
        return f"{in_file_name(candidate)}.jsonl"

    def _game(self, played: Played, candidate_first: bool) -> Row | None:
        game: Game = played.games[candidate_first]
        if REFUSED in game.details:
            return None
        return {
            "score": game.label or None,
            "judgment": {"answer": game.raw},
            "prompt": self.messages(played.shown[candidate_first]),
        }

    def _category(self, question: Question) -> str:
        # Version 0.1 is one category, which older files do not name.
        category = question.category or self._version
        if category not in self._told and not question.category:
            raise UsageError(
                f"question {question.id} has no category, which {self.name} needs: earlier answers do not hold it; "
                "`dpr benchmark export` them, and judge the file by `dpr benchmark judge`"
            )
        if category not in self._told:
            raise UsageError(
                f"question {question.id} is of the category {question.category!r}, for which {CATEGORIES} tells the "
                f"judge nothing (it does for {', '.join(sorted(self._told))})"
            )
        return category


def _pattern(text: object, where: str) -> re.Pattern[str]:
    try:
        pattern = re.compile(str(text))
    except re.error as error:
        raise UsageError(f"{where}: the pattern {str(text)[:60]!r} cannot be read: {error}") from None
    if pattern.groups != 1:
        raise UsageError(f"{where}: the pattern {str(text)[:60]!r} has {pattern.groups} groups; the label is one")
    return pattern


def _literals(source: str, path: Path) -> dict[str, Any]:
    """What the names in a Python file stand for, as far as these are texts and what is made of them; nothing is run."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"{path} cannot be read as Python: {error}") from None
    known: dict[str, Any] = {}
    for node in body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            known[node.targets[0].id] = _value(node.value, known)
    return known


def _value(node: ast.expr, known: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return known.get(name)
        case ast.Dict(keys=keys, values=values):
            named = zip(keys, values, strict=True)
            return {key.value: _value(value, known) for key, value in named if isinstance(key, ast.Constant)}
        case _:
            return None
