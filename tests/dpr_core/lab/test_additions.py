import random

from dpr_core.config.data import AdditionsConfig
from dpr_core.lab.programs import additions, draw_additions


def test_a_problem_by_hand() -> None:
    found = additions(4, (3, 2, 4), modulus=5)
    assert found.prompt == "Start at 4, add 3, add 2, add 4."
    assert found.id == "4+3+2+4"
    assert found.result == 3
    assert found.answer("careful", False, random.Random(0)) == "Steps: 4+3=2+2=4+4=3. The answer is 3."


def test_drawn_problems_are_within_the_tasks_bounds() -> None:
    task = AdditionsConfig(modulus=3, operations=4, largest_addend=6)
    rng = random.Random(0)
    drawn = [[int(n) for n in draw_additions(task, rng).id.split("+")] for _ in range(300)]
    assert {numbers[0] for numbers in drawn} == {0, 1, 2}
    assert {len(numbers) for numbers in drawn} == {5}
    assert {n for numbers in drawn for n in numbers[1:]} == {1, 2, 3, 4, 5, 6}
