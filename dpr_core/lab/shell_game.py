"""A ball under one of a few cups, which are swapped two at a time: `Ball at 2. Swap 1-3, swap 2-3.`"""

import random
from collections.abc import Sequence

from dpr_core.config.data import ShellGameConfig
from dpr_core.lab.problem import Problem, Step


def draw(task: ShellGameConfig, rng: random.Random) -> Problem:
    swaps = [(cups[0], cups[1]) for cups in (sorted(rng.sample(range(1, task.cups + 1), 2)) for _ in range(task.swaps))]
    return problem(rng.randint(1, task.cups), swaps, task.cups)


def problem(start: int, swaps: Sequence[tuple[int, int]], cups: int) -> Problem:
    """A careful answer is `Steps: 2 1-3=2 2-3=3. The answer is 3.`"""
    written = [f"{a}-{b}" for a, b in swaps]
    return Problem(
        id=" ".join([str(start), *written]),
        prompt=f"Ball at {start}. Swap " + ", swap ".join(written) + ".",
        start=start,
        steps=tuple(
            Step(f" {text}", {cup: {a: b, b: a}.get(cup, cup) for cup in range(1, cups + 1)})
            for text, (a, b) in zip(written, swaps, strict=True)
        ),
    )
