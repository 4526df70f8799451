"""A chain of additions modulo a small number: `Start at 4, add 3, add 2.`"""

import random
from collections.abc import Sequence

from dpr_core.config.data import AdditionsConfig
from dpr_core.lab.problem import Problem, Step


def draw(task: AdditionsConfig, rng: random.Random) -> Problem:
    addends = [rng.randint(1, task.largest_addend) for _ in range(task.operations)]
    return problem(rng.randrange(task.modulus), addends, task.modulus)


def problem(start: int, addends: Sequence[int], modulus: int) -> Problem:
    """A careful answer is `Steps: 4+3=2+2=4. The answer is 4.`"""
    return Problem(
        id="+".join(str(n) for n in (start, *addends)),
        prompt=f"Start at {start}" + "".join(f", add {n}" for n in addends) + ".",
        start=start,
        steps=tuple(Step(f"+{n}", {value: (value + n) % modulus for value in range(modulus)}) for n in addends),
    )
