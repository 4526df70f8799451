"""Benchmark questions, and the exact match of a stated result with the reference."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

ReadResult = Callable[[str], str | None]
"""Reads the result that an answer states; None where it states none."""


@dataclass(frozen=True)
class Question:
    """One question of a benchmark: the user's turns, to be asked one after the other."""

    id: str
    turns: tuple[str, ...]
    system: str = ""
    reference: str | None = None
    """The result that a right answer states, to be checked by a program."""
    references: tuple[str, ...] = ()
    """A reference answer to each turn, for a judge to read."""
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


def is_right(question: Question, text: str, read_result: ReadResult) -> bool | None:
    """Whether `text` states the question's reference; None where the question has no reference."""
    if question.reference is None:
        return None
    return read_result(text) == question.reference
