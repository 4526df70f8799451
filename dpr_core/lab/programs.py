"""The programs that write the lab's prompts, by task, and what is drawn from them: splits, prompts, demonstrations."""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Literal

from dpr_core.config.data import AdditionsConfig, LabSourceConfig, LabTask, ShellGameConfig
from dpr_core.errors import UsageError
from dpr_core.lab import additions, shell_game
from dpr_core.lab.problem import Problem, Style

Split = Literal["train", "evaluation"]

PROGRAMS: Mapping[type[LabTask], Callable[[Any, random.Random], Problem]] = {
    AdditionsConfig: additions.draw,
    ShellGameConfig: shell_game.draw,
}


def split_of(problem: Problem, task: LabTask) -> Split:
    """A prompt's numbers alone decide whether it may be demonstrated or is kept for evaluation."""
    digest = hashlib.sha256(problem.id.encode()).digest()
    return "evaluation" if int.from_bytes(digest[:8]) < task.evaluation_share * 2**64 else "train"


def problems(task: LabTask, split: Split, rng: random.Random) -> Iterator[Problem]:
    """Distinct problems of one split, in an order that `rng` decides; ends when few unseen ones are left."""
    draw = PROGRAMS[type(task)]
    seen: set[str] = set()
    misses = 0
    while misses < 10_000:
        problem = draw(task, rng)
        if problem.id in seen or split_of(problem, task) != split:
            misses += 1
            continue
        misses = 0
        seen.add(problem.id)
        yield problem


def draw_problems(task: LabTask, split: Split, count: int, seed: int) -> list[Problem]:
    """`count` distinct problems of one split."""
    found = list(islice(problems(task, split, random.Random(f"{split} {seed}")), count))
    if len(found) < count:
        raise UsageError(
            f"the lab's task has only {len(found)} distinct {split} prompts, fewer than prompts={count}; "
            "ask for fewer prompts or for a longer chain"
        )
    return found


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
