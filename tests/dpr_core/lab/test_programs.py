import itertools
import random
from typing import get_args

import pytest

from dpr_core.config.data import AdditionsConfig, LabSourceConfig, LabTask, ShellGameConfig
from dpr_core.errors import UsageError
from dpr_core.lab.programs import PROGRAMS, additions, demonstrations, draw_problems, problems, read_result, split_of

ADDITIONS = AdditionsConfig(modulus=5, operations=4, largest_addend=6)
GAMES = ShellGameConfig(cups=4, swaps=4)
TASKS = pytest.mark.parametrize("task", [ADDITIONS, GAMES])


def _result(id: str) -> str:
    """The result of a chain modulo 5, or of a shell game, worked out from the problem's numbers."""
    if "+" in id:
        return str(sum(map(int, id.split("+"))) % 5)
    ball, *swaps = id.split()
    for a, b in (swap.split("-") for swap in swaps):
        ball = {a: b, b: a}.get(ball, ball)
    return ball


def test_every_task_has_a_program() -> None:
    assert set(PROGRAMS) == set(get_args(get_args(LabTask)[0]))


@pytest.mark.parametrize(
    ("task", "every"),
    [
        (
            AdditionsConfig(modulus=3, operations=3, largest_addend=3, evaluation_share=0.3),
            {f"{a}+{b}+{c}+{d}" for a in (0, 1, 2) for b, c, d in itertools.product((1, 2, 3), repeat=3)},
        ),
        (
            ShellGameConfig(cups=3, swaps=3, evaluation_share=0.3),
            {" ".join((str(a), *s)) for a in (1, 2, 3) for s in itertools.product(("1-2", "1-3", "2-3"), repeat=3)},
        ),
    ],
)
def test_training_and_evaluation_prompts_never_meet_and_together_are_all(task: LabTask, every: set[str]) -> None:
    train = {p.id for p in problems(task, "train", random.Random(0))}
    evaluation = {p.id for p in problems(task, "evaluation", random.Random(0))}
    assert not train & evaluation
    assert train | evaluation == every
    assert 0.15 < len(evaluation) / len(every) < 0.45


def test_the_split_is_a_matter_of_the_numbers_alone() -> None:
    """Whatever the seed and the modulus: 4+0+1+2 modulo 5 and modulo 10 are the same prompt to a reader."""
    other = AdditionsConfig(modulus=10, operations=3)
    for start in range(5):
        for addends in itertools.product(range(5), repeat=3):
            small, large = additions(start, addends, 5), additions(start, addends, 10)
            assert split_of(small, ADDITIONS) == split_of(large, other)


@TASKS
def test_what_is_demonstrated_is_never_asked(task: LabTask) -> None:
    demonstrated = {row[0] for seed in range(3) for row in demonstrations(LabSourceConfig(task=task, rows=500), seed)}
    asked = {p.id for seed in range(3) for p in draw_problems(task, "evaluation", 100, seed)}
    assert demonstrated
    assert asked
    assert not demonstrated & asked


@TASKS
def test_demonstrations_are_distinct_and_repeatable(task: LabTask) -> None:
    source = LabSourceConfig(task=task, rows=300, careful=0.5, slips=0.25)
    rows = list(demonstrations(source, seed=0))
    assert len(rows) == 300
    assert len({prompt for _, prompt, _ in rows}) == len({id for id, _, _ in rows}) == 300
    assert rows == list(demonstrations(source, seed=0))
    assert rows != list(demonstrations(source, seed=1))


@pytest.mark.parametrize("task", [AdditionsConfig(operations=6), ShellGameConfig(swaps=6)])
def test_demonstrations_have_their_shares_of_style_and_slips(task: LabTask) -> None:
    """Within three deviations of 2000 draws."""
    source = LabSourceConfig(task=task, rows=2000, careful=0.7, slips=0.2)
    careful = slipped = 0
    for id, _, response in demonstrations(source, seed=3):
        careful += response.startswith("Steps:")
        slipped += read_result(response) != _result(id)
    assert careful / 2000 == pytest.approx(0.7, abs=0.031)
    assert slipped / 2000 == pytest.approx(0.2, abs=0.027)


def test_too_few_prompts_are_a_wrong_request() -> None:
    task = AdditionsConfig(modulus=2, operations=2, largest_addend=3)
    every = [additions(a, b, 2) for a in (0, 1) for b in itertools.product((1, 2, 3), repeat=2)]
    available = sum(split_of(problem, task) == "train" for problem in every)
    assert len(list(demonstrations(LabSourceConfig(task=task, rows=available), 0))) == available
    with pytest.raises(UsageError, match=f"only {available} distinct training prompts.*rows=50"):
        list(demonstrations(LabSourceConfig(task=task, rows=50), 0))
    with pytest.raises(UsageError, match="evaluation prompts.*prompts=50"):
        draw_problems(task, "evaluation", 50, 0)


@TASKS
def test_evaluation_prompts_are_distinct_and_repeatable(task: LabTask) -> None:
    found = draw_problems(task, "evaluation", 200, seed=0)
    assert len({p.id for p in found}) == 200
    assert all(split_of(p, task) == "evaluation" for p in found)
    assert found == draw_problems(task, "evaluation", 200, seed=0)
    assert found != draw_problems(task, "evaluation", 200, seed=1)
