"""What is rated, who rates it, and rating many answers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dpr_core.config.evaluation import JudgeExecutionConfig
from dpr_core.evaluation.questions import Question
from dpr_core.evaluation.queue import ask_all

LOWEST, HIGHEST = 1.0, 10.0


@dataclass(frozen=True)
class Turn:
    """The answer to one turn of a question, after those to the turns before it."""

    question: Question
    answers: tuple[str, ...]
    """To the first so many turns. The last of them is what is rated."""
    judging: int = 1
    """Which of several ratings of the same."""

    @property
    def number(self) -> int:
        """Which turn it is, counted from 1."""
        return len(self.answers)

    @property
    def references(self) -> tuple[str, ...]:
        """Reference answers to these turns, where the question has any."""
        return self.question.references[: self.number]


@dataclass(frozen=True)
class Request:
    """What a language model is asked about a turn."""

    template: str
    """Name of the instructions."""
    messages: list[dict[str, str]]
    shown: str
    """The message with the conversation, the same each time that the same is asked."""


@dataclass(frozen=True)
class Rating:
    """A score from 1 to 10, None where none could be read, with what was asked and what was said."""

    score: float | None
    raw: str
    request: Request
    details: Mapping[str, str | int] = field(default_factory=dict)


class Prompts(Protocol):
    """How a rating is asked for, and how it is read from the reply."""

    def request(self, turn: Turn) -> Request: ...

    def read(self, reply: str) -> float | None: ...


class Rater(Protocol):
    """Rates one turn. Every rater, scripted or not, stands behind this."""

    async def rate(self, turn: Turn) -> Rating:
        """Unavailable: later perhaps; any other DensePathError: never."""
        ...

    def status(self) -> str:
        """What a progress display should say of the work so far, such as what it cost; often nothing."""
        ...

    async def close(self) -> None:
        """Let go of connections. The rater may be used again afterwards."""
        ...


def turns_of(answered: Iterable[tuple[Question, tuple[str, ...]]], judgings: int = 1) -> list[Turn]:
    """Every turn of every answer, `judgings` times."""
    return [
        Turn(question, answers[:number], judging)
        for question, answers in answered
        for number in range(1, len(answers) + 1)
        for judging in range(1, judgings + 1)
    ]


async def rate_all(
    rater: Rater, turns: Sequence[Turn], execution: JudgeExecutionConfig, on_progress: Callable[[int, int, str], None]
) -> list[Rating]:
    """A rating for each turn, in the order of the turns.

    `on_progress` gets how many are rated, of how many, and what the rater says of its work.
    """
    try:
        return await ask_all(turns, rater.rate, execution, lambda done, total: on_progress(done, total, rater.status()))
    finally:
        await rater.close()


def readable(score: float) -> float | None:
    """A score on the scale; anything else is none."""
    return score if LOWEST <= score <= HIGHEST else None
