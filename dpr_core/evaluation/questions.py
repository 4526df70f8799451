"""Benchmark questions, and whether an answer to one is right."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

ReadResult = Callable[[str], str | None]
"""Reads the result that an answer states; None where it states none."""

IsRight = Callable[["Question", str], bool | None]
"""Whether an answer to a question is right; None where no program can know."""


@dataclass(frozen=True)
class Question:
    """One question of a benchmark: the user's turns, to be asked one after the other."""

    id: str
    turns: tuple[str, ...]
    system: str = ""
    reference: str | None = None
    """The result that a right answer states, to be checked by a program."""
    references: tuple[str, ...] = ()
    """A reference answer to each turn, for a judge to read; or all there are to the only turn."""
    category: str = ""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The question that `asdict` made these values of."""
        texts = {name: tuple(values.get(name, ())) for name in ("turns", "references")}
        return cls(**{**values, **texts})

    @property
    def prompt(self) -> str:
        """The only turn of a single-turn question."""
        if len(self.turns) != 1:
            raise ValueError(f"question {self.id} has {len(self.turns)} turns; it has no single prompt")
        return self.turns[0]


def exact_match(read_result: ReadResult) -> IsRight:
    """Right is what states the question's reference; a question without one has no right answer."""

    def is_right(question: Question, text: str) -> bool | None:
        return None if question.reference is None else read_result(text) == question.reference

    return is_right


def not_checked(question: Question, text: str) -> None:
    """A judge decides, not a program."""
