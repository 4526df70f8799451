"""FastChat's judge prompts (judge_prompts.jsonl) as the template of single-answer rating, filled in as its script does.

Their delimiters are the same in every request, so an answer may imitate them: this project's own are safer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dpr_core.errors import UsageError
from dpr_core.evaluation.endpoint import Messages
from dpr_core.evaluation.official.mt_bench import read_rating
from dpr_core.evaluation.prompts import FIELD, filled, plain
from dpr_core.evaluation.rate import Turn, on_scale
from dpr_core.evaluation.reading import without_thinking
from dpr_core.evaluation.rows import Row, naming, need, read_rows, unique

TURNS = 2


@dataclass(frozen=True)
class Wanted:
    """What one template must be like: the verdict that it asks for, fields that it must show, and all that it may."""

    verdict: str
    shown: set[str]
    known: set[str]


def numbered(*fields: str) -> set[str]:
    """The names of fields of several turns."""
    return {f"{field}_{turn}" for field in fields for turn in range(1, TURNS + 1)}


def read_templates(path: Path, wanted: Mapping[str, Wanted], what: str, pinned: str | None = None) -> dict[str, Row]:
    """UsageError where the file does not hold these templates, or one of them asks for what there is not."""
    rows = read_rows(path, pinned)
    with naming(path):
        need(rows, ("name",), "FastChat's judge prompts")
        named = unique(rows, lambda row: str(row["name"]), "the judge prompt")
        for name in sorted(wanted):
            if name not in named:
                raise UsageError(
                    f"there is no judge prompt called {name}, which {what} needs (there are {_some(named)})"
                )
            _check(f"the judge prompt {name}", named[name], wanted[name])
    return {name: named[name] for name in wanted}


class FastChatTemplate:
    """Four templates: for the first turn and for the second, each without and with reference answers."""

    def __init__(self, templates: Mapping[str, Row]) -> None:
        self._templates = templates

    @classmethod
    def read_from(cls, path: Path, pinned: str | None = None) -> "FastChatTemplate":
        """UsageError where the file does not hold the four templates, or one of them asks for what there is not."""
        kinds = [(turn, with_reference) for turn in (1, TURNS) for with_reference in (False, True)]
        return cls(read_templates(path, {_name(*kind): _wanted(*kind) for kind in kinds}, "rating", pinned))

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


def _wanted(turn: int, with_reference: bool) -> Wanted:
    known = numbered("question", "answer") if turn > 1 else {"question", "answer"}
    known |= {f"ref_answer_{i}" for i in range(1, turn + 1)} if with_reference else set()
    return Wanted("[[rating]]", {f"answer_{TURNS}" if turn > 1 else "answer"}, known)


def _fields(turn: Turn) -> dict[str, str]:
    references = {f"ref_answer_{i}": text for i, text in enumerate(turn.references, start=1)}
    if turn.number == 1:
        texts = {"question": turn.question.turns[0], "answer": turn.answers[0]}
    else:
        texts = {f"question_{i}": text for i, text in enumerate(turn.question.turns, start=1)}
        texts |= {f"answer_{i}": text for i, text in enumerate(turn.answers, start=1)}
    return {name: plain(text) for name, text in (texts | references).items()}


def _check(where: str, row: Row, wanted: Wanted) -> None:
    for field in ("system_prompt", "prompt_template"):
        if not isinstance(row.get(field), str):
            raise UsageError(f"{where} has no text `{field}`")
    if row.get("output_format", wanted.verdict) != wanted.verdict:
        raise UsageError(f"{where} asks for {row['output_format']!r}, not for a {wanted.verdict}")
    used = {found for found in FIELD.findall(row["prompt_template"]) if found}
    if strange := used - wanted.known:
        raise UsageError(f"{where} has the field {{{min(strange)}}}; known here: {_some(wanted.known)}")
    if hidden := wanted.shown - used:
        raise UsageError(f"{where} has no {{{min(hidden)}}}, so it would not show what is to be judged")


def _some(names: "Mapping[str, Row] | set[str]") -> str:
    return ", ".join(sorted(map(str, names))[:8])
