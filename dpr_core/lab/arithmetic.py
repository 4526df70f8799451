"""The lab's task: a chain of additions modulo a small number, answered carefully, carelessly or with a slip."""

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from dpr_core.config.data import ArithmeticTask, LabSource
from dpr_core.errors import UsageError

Style = Literal["careful", "bare", "jump"]
Split = Literal["train", "evaluation"]


@dataclass(frozen=True)
class Problem:
    start: int
    addends: tuple[int, ...]
    modulus: int

    @property
    def id(self) -> str:
        return "+".join(str(n) for n in (self.start, *self.addends))

    @property
    def prompt(self) -> str:
        return f"Start at {self.start}" + "".join(f", add {n}" for n in self.addends) + "."

    @property
    def result(self) -> int:
        return (self.start + sum(self.addends)) % self.modulus


def split_of(problem: Problem, task: ArithmeticTask) -> Split:
    """A prompt's numbers alone decide whether it may be demonstrated or is kept for evaluation."""
    digest = hashlib.sha256(problem.id.encode()).digest()
    return "evaluation" if int.from_bytes(digest[:8]) < task.evaluation_share * 2**64 else "train"


def problems(task: ArithmeticTask, split: Split, rng: random.Random) -> Iterator[Problem]:
    """Distinct problems of one split, in an order that `rng` decides; ends when few unseen ones are left."""
    seen: set[str] = set()
    misses = 0
    while misses < 10_000:
        addends = tuple(rng.randint(1, task.largest_addend) for _ in range(task.operations))
        problem = Problem(rng.randrange(task.modulus), addends, task.modulus)
        if problem.id in seen or split_of(problem, task) != split:
            misses += 1
            continue
        misses = 0
        seen.add(problem.id)
        yield problem


def answer(problem: Problem, style: Style, slip: bool, rng: random.Random) -> str:
    """A written answer; a slip is one wrong sum, carried forward to the end."""
    value = problem.start
    steps = len(problem.addends)
    shown = {"careful": steps, "bare": 0, "jump": rng.randint(1, steps - 1) if steps > 1 else 0}[style]
    wrong = rng.randrange(max(shown, 1)) if slip else None
    text = f"Steps: {value}" if shown else ""
    for i, addend in enumerate(problem.addends):
        value = (value + addend) % problem.modulus
        if i == wrong:
            value = (value + rng.randrange(1, problem.modulus)) % problem.modulus
        if i < shown:
            text += f"+{addend}={value}"
    return f"{text}. The answer is {value}." if shown else f"The answer is {value}."


def demonstrations(source: LabSource, seed: int) -> Iterator[tuple[str, str, str]]:
    """`source.rows` rows of (id, prompt, response) on training prompts."""
    rng = random.Random(f"demonstrations {seed}")
    written = 0
    for problem in problems(source.task, "train", rng):
        if written == source.rows:
            return
        style: Style = "careful" if rng.random() < source.careful else "bare"
        yield problem.id, problem.prompt, answer(problem, style, rng.random() < source.slips, rng)
        written += 1
    if written < source.rows:
        raise UsageError(
            f"the lab's task has only {written} distinct training prompts, fewer than rows={source.rows}; "
            "ask for fewer rows or for more operations"
        )


def draw_problems(task: ArithmeticTask, split: Split, count: int, seed: int) -> list[Problem]:
    """`count` distinct problems of one split."""
    found = list(islice(problems(task, split, random.Random(f"{split} {seed}")), count))
    if len(found) < count:
        raise UsageError(
            f"the lab's task has only {len(found)} distinct {split} prompts, fewer than prompts={count}; "
            "ask for fewer prompts or for more operations"
        )
    return found


def read_result(text: str) -> str | None:
    """The result that an answer states, or None where it states none."""
    match = re.fullmatch(r"(?:.*\. )?The answer is (\d+)\.\s*", text, flags=re.DOTALL)
    return match.group(1) if match else None
