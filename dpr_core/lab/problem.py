"""What all tasks of the lab share: a problem is a chain of steps, and an answer shows them, a part of them, or none."""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Style = Literal["careful", "bare", "jump"]


@dataclass(frozen=True)
class Step:
    """One operation. It is a permutation of the values, so a wrong value stays wrong to the end."""

    text: str
    """How an answer writes it."""

    leads_to: Mapping[int, int]
    """What it makes of every value."""


@dataclass(frozen=True)
class Problem:
    """A prompt, and all that is needed to answer it."""

    id: str
    """Its numbers; the same numbers are the same problem."""

    prompt: str
    start: int
    steps: tuple[Step, ...]

    @property
    def result(self) -> int:
        value = self.start
        for step in self.steps:
            value = step.leads_to[value]
        return value

    def answer(self, style: Style, slip: bool, rng: random.Random) -> str:
        """A written answer; a slip is one wrong step, carried forward to the end."""
        part_way = rng.randint(1, len(self.steps) - 1) if len(self.steps) > 1 else 0
        shown = {"careful": len(self.steps), "jump": part_way, "bare": 0}[style]
        wrong = rng.randrange(max(shown, 1)) if slip else None
        value = self.start
        text = f"Steps: {value}" if shown else ""
        for i, step in enumerate(self.steps):
            value = step.leads_to[value]
            if i == wrong:
                value = _another(value, step, rng)
            if i < shown:
                text += f"{step.text}={value}"
        return f"{text}. The answer is {value}." if shown else f"The answer is {value}."


def _another(value: int, step: Step, rng: random.Random) -> int:
    values = sorted(step.leads_to)
    return values[(values.index(value) + rng.randrange(1, len(values))) % len(values)]


def read_result(text: str) -> str | None:
    """The result that an answer states, or None where it states none."""
    match = re.fullmatch(r"(?:.*\. )?The answer is (\d+)\.\s*", text, flags=re.DOTALL)
    return match.group(1) if match else None
