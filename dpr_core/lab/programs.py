"""Synthetic tasks with verifiable results: chains of additions, shell games, word problems; splits, demonstrations."""

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, Protocol

from dpr_core.config.data import AdditionsConfig, LabSourceConfig, LabTask, LabWordProblemsConfig, ShellGameConfig
from dpr_core.errors import UsageError
from dpr_core.lab import Style
from dpr_core.lab.word_problems import draw_word_problem

Split = Literal["train", "evaluation"]

MOST_MISSES = 10_000
"""Draws in a row without a new problem after which a task counts as exhausted."""


class Problem(Protocol):
    """A prompt, and all that is needed to answer it."""

    @property
    def id(self) -> str:
        """The numbers of the problem; the same numbers are the same problem."""

    @property
    def split_by(self) -> str:
        """What belongs to one split as a whole."""

    @property
    def prompt(self) -> str: ...

    @property
    def result(self) -> int: ...

    def answer(self, style: Style, slip: bool, rng: random.Random) -> str:
        """A written answer; a slip is one wrong step, carried forward to the end."""


@dataclass(frozen=True)
class Step:
    """One operation: a permutation of the values, so that a wrong value stays wrong to the end."""

    text: str
    """The operation as an answer writes it."""

    leads_to: Mapping[int, int]
    """The value after it for each value before it."""


@dataclass(frozen=True)
class Chain:
    """A value and what is done to it, one step after the other."""

    id: str
    prompt: str
    start: int
    steps: tuple[Step, ...]

    @property
    def split_by(self) -> str:
        return self.id

    @property
    def result(self) -> int:
        value = self.start
        for step in self.steps:
            value = step.leads_to[value]
        return value

    def answer(self, style: Style, slip: bool, rng: random.Random) -> str:
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


def additions(start: int, addends: Sequence[int], modulus: int) -> Chain:
    """`Start at 4, add 3, add 2.`, whose careful answer is `Steps: 4+3=2+2=4. The answer is 4.` modulo 5."""
    return Chain(
        id="+".join(str(n) for n in (start, *addends)),
        prompt=f"Start at {start}" + "".join(f", add {n}" for n in addends) + ".",
        start=start,
        steps=tuple(Step(f"+{n}", {value: (value + n) % modulus for value in range(modulus)}) for n in addends),
    )


def draw_additions(task: AdditionsConfig, rng: random.Random) -> Chain:
    """A random chain of additions."""
    addends = [rng.randint(1, task.largest_addend) for _ in range(task.operations)]
    return additions(rng.randrange(task.modulus), addends, task.modulus)


def shell_game(start: int, swaps: Sequence[tuple[int, int]], cups: int) -> Chain:
    """`Ball at 2. Swap 1-3, swap 2-3.`, answered carefully by `Steps: 2 1-3=2 2-3=3. The answer is 3.`."""
    written = [f"{a}-{b}" for a, b in swaps]
    return Chain(
        id=" ".join([str(start), *written]),
        prompt=f"Ball at {start}. Swap " + ", swap ".join(written) + ".",
        start=start,
        steps=tuple(
            Step(f" {text}", {cup: {a: b, b: a}.get(cup, cup) for cup in range(1, cups + 1)})
            for text, (a, b) in zip(written, swaps, strict=True)
        ),
    )


def draw_shell_game(task: ShellGameConfig, rng: random.Random) -> Chain:
    """A random shell game."""
    swaps = [(cups[0], cups[1]) for cups in (sorted(rng.sample(range(1, task.cups + 1), 2)) for _ in range(task.swaps))]
    return shell_game(rng.randint(1, task.cups), swaps, task.cups)


PROGRAMS: Mapping[type[LabTask], Callable[[Any, random.Random], Problem]] = {
    AdditionsConfig: draw_additions,
    ShellGameConfig: draw_shell_game,
    LabWordProblemsConfig: draw_word_problem,
}
"""What draws a random problem, by the type of the task."""


def split_of(problem: Problem, task: LabTask) -> Split:
    """The split of a prompt, which the hash of its numbers alone decides, or that of its template."""
    digest = hashlib.sha256(problem.split_by.encode()).digest()
    return "evaluation" if int.from_bytes(digest[:8]) < task.evaluation_share * 2**64 else "train"


def problems(task: LabTask, split: Split, rng: random.Random) -> Iterator[Problem]:
    """Distinct problems of one split in a random order, until few new ones are left."""
    draw = PROGRAMS[type(task)]
    drawn: set[str] = set()
    misses = 0
    while misses < MOST_MISSES:
        problem = draw(task, rng)
        if problem.id in drawn or split_of(problem, task) != split:
            misses += 1
            continue
        misses = 0
        drawn.add(problem.id)
        yield problem


def draw_problems(task: LabTask, split: Split, count: int, seed: int) -> list[Problem]:
    """`count` distinct problems of one split."""
    drawn = list(islice(problems(task, split, random.Random(f"{split} {seed}")), count))
    if len(drawn) < count:
        raise UsageError(
            f"the lab's task has only {len(drawn)} distinct {split} prompts, fewer than prompts={count}; "
            "ask for fewer prompts or for a longer chain"
        )
    return drawn


def demonstrations(source: LabSourceConfig, seed: int) -> Iterator[tuple[str, str, str]]:
    """`source.rows` rows of (id, prompt, response) on training prompts."""
    rng = random.Random(f"demonstrations {seed}")
    written = 0
    for problem in problems(source.task, "train", rng):
        if written == source.rows:
            return
        style: Style = "careful" if rng.random() < source.careful else "bare"
        yield problem.id, problem.prompt, problem.answer(style, rng.random() < source.slips, rng)
        written += 1
    if written < source.rows:
        raise UsageError(
            f"the lab's task has only {written} distinct training prompts, fewer than rows={source.rows}; "
            "ask for fewer rows or for a longer chain"
        )
