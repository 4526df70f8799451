"""What a judge is asked and what it says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from dpr_core.errors import DensePathError
from dpr_core.evaluation.questions import Question


@dataclass(frozen=True)
class Answer:
    """One policy's answer: a text for each turn of the question."""

    turns: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> "Answer":
        """The answer to a single-turn question."""
        return cls((text,))


@dataclass(frozen=True)
class Comparison:
    """Two answers to one question, in the order in which the judge sees them."""

    question: Question
    first: Answer
    second: Answer


class Verdict(StrEnum):
    """Which answer is better, by position. Unreadable is no verdict: it is counted, and scored as nothing."""

    FIRST = "first"
    SECOND = "second"
    TIE = "tie"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Judgment:
    """A verdict, the judge's own words, and what an endpoint told about its work (model, fingerprint, tokens)."""

    verdict: Verdict
    raw: str
    details: Mapping[str, str | int] = field(default_factory=dict)


class Unavailable(DensePathError):
    """No judgment this time, for a reason that may pass: the same request may be sent again later."""


class Unreachable(Unavailable):
    """Nobody is there, or somebody who does not speak this language. It may pass; before a run it is a mistake."""


class Judge(Protocol):
    """Compares two answers. Every judge, scripted or not, stands behind this."""

    async def prepare(self, comparisons: Sequence[Comparison]) -> None:
        """Told all that will be asked, before the first is. A judge that is cheaper in bulk may do its work here."""
        ...

    async def compare(self, comparison: Comparison) -> Judgment:
        """Judge one comparison. Unavailable: later perhaps; any other DensePathError: never."""
        ...

    def status(self) -> str:
        """What a progress display should say of the work so far, such as what it cost; often nothing."""
        ...

    async def close(self) -> None:
        """Let go of connections. The judge may be used again afterwards."""
        ...
