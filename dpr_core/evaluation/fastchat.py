"""FastChat's judge prompts (judge_prompts.jsonl) as the template of single-answer rating, filled in as its script does.

Their delimiters are the same in every request, so an answer may imitate them: this project's own are safer.
"""

from collections.abc import Mapping
from pathlib import Path

from dpr_core.errors import UsageError
from dpr_core.evaluation.endpoint import Messages
from dpr_core.evaluation.official.mt_bench import read_rating
from dpr_core.evaluation.prompts import FIELD, filled, plain
from dpr_core.evaluation.rate import Turn, on_scale
from dpr_core.evaluation.reading import without_thinking
from dpr_core.evaluation.rows import Row, naming, need, read_rows, unique

TURNS = 2


class FastChatTemplate:
    """Four templates: for the first turn and for the second, each without and with reference answers."""

    def __init__(self, templates: Mapping[str, Row]) -> None:
        self._templates = templates

    @classmethod
    def read_from(cls, path: Path, pinned: str | None = None) -> "FastChatTemplate":
        """UsageError where the file does not hold the four templates, or one of them asks for what there is not."""
        rows = read_rows(path, pinned)
        with naming(path):
            need(rows, ("name",), "FastChat's judge prompts")
            named = unique(rows, lambda row: str(row["name"]), "the judge prompt")
            templates = {_name(turn, with_reference) for turn in (1, TURNS) for with_reference in (False, True)}
            for name in sorted(templates):
                _check(name, named)
        return cls({name: named[name] for name in templates})

    def name(self, turn: Turn) -> str:
        if turn.number > TURNS:
            raise UsageError(
                f"question {turn.question.id} has more than {TURNS} turns, which FastChat's judge prompts know nothing "
                "of; leave out rate.prompts"
            )
        return _name(turn.number, with_reference=len(turn.references) == turn.number)

    def messages(self, turn: Turn) -> Messages:
        instructions = self._templates[self.name(turn)]["system_prompt"]
        system = [{"role": "system", "content": instructions}] if instructions else []
        return [*system, {"role": "user", "content": self.shown(turn)}]

    def shown(self, turn: Turn) -> str:
        return filled(self._templates[self.name(turn)]["prompt_template"], _fields(turn))

    def score(self, reply: str) -> float | None:
        """As FastChat reads it: the first `[[x]]` of the reply, else the first `[x]`; in thinking there is none."""
        return on_scale(read_rating(without_thinking(reply)))


def _name(turn: int, with_reference: bool) -> str:
    return f"single{'-math' if with_reference else ''}-v1{'-multi-turn' if turn > 1 else ''}"


def _fields(turn: Turn) -> dict[str, str]:
    references = {f"ref_answer_{i}": text for i, text in enumerate(turn.references, start=1)}
    if turn.number == 1:
        texts = {"question": turn.question.turns[0], "answer": turn.answers[0]}
    else:
        texts = {f"question_{i}": text for i, text in enumerate(turn.question.turns, start=1)}
        texts |= {f"answer_{i}": text for i, text in enumerate(turn.answers, start=1)}
    return {name: plain(text) for name, text in (texts | references).items()}


def _check(name: str, named: Mapping[str, Row]) -> None:
    if name not in named:
        raise UsageError(f"there is no judge prompt called {name}, which rating needs (there are {_some(named)})")
    row = named[name]
    where = f"the judge prompt {name}"
    for field in ("system_prompt", "prompt_template"):
        if not isinstance(row.get(field), str):
            raise UsageError(f"{where} has no text `{field}`")
    if row.get("output_format", "[[rating]]") != "[[rating]]":
        raise UsageError(f"{where} asks for {row['output_format']!r}, not for a [[rating]]")
    second = "multi-turn" in name
    answer = "answer_2" if second else "answer"
    known = {"question_1", "question_2", "answer_1", "answer_2"} if second else {"question", "answer"}
    if "math" in name:
        known |= {"ref_answer_1", "ref_answer_2"} if second else {"ref_answer_1"}
    used = {found for found in FIELD.findall(row["prompt_template"]) if found}
    if strange := used - known:
        raise UsageError(f"{where} has the field {{{min(strange)}}}; known here: {_some(known)}")
    if answer not in used:
        raise UsageError(f"{where} has no {{{answer}}}, so it would not show what is to be rated")


def _some(names: "Mapping[str, Row] | set[str]") -> str:
    return ", ".join(sorted(map(str, names))[:8])
