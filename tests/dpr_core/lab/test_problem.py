import random
import re
from collections import Counter
from typing import get_args

import pytest

from dpr_core.config.data import AdditionsConfig, LabTask, ShellGameConfig
from dpr_core.lab.programs import Problem, Style, additions, draw_problems, read_result, shell_game

STYLES: tuple[Style, ...] = get_args(Style)
TASKS: tuple[LabTask, ...] = (
    AdditionsConfig(modulus=5, operations=4, largest_addend=6),
    ShellGameConfig(cups=4, swaps=4),
)


def _next(value: int, operation: str, problem: Problem) -> int:
    """One step worked out from its text."""
    if operation.startswith("+"):
        return (value + int(operation[1:])) % 5
    a, b = map(int, operation.split("-"))
    return {a: b, b: a}.get(value, value)


def _checked(text: str, problem: Problem) -> tuple[list[int], int]:
    """Read an answer step by step: the places of wrong steps among those shown, and the number it ends on."""
    ending = re.search(r"The answer is (\d+)\.$", text)
    assert ending
    shown = re.match(r"Steps: (\d+)((?: ?[\d+-]+=\d+)*)\. ", text)
    if shown is None:
        return [], int(ending[1])
    value, wrong = int(shown[1]), []
    assert value == problem.start
    for i, (operation, result) in enumerate(re.findall(r" ?([\d+-]+)=(\d+)", shown[2])):
        assert operation == problem.steps[i].text.strip()
        if _next(value, operation, problem) != int(result):
            wrong.append(i)
        value = int(result)
    return wrong, int(ending[1])


def test_answers_by_hand() -> None:
    problem, rng = additions(4, (3, 2, 4), 5), random.Random(0)
    assert problem.answer("careful", False, rng) == "Steps: 4+3=2+2=4+4=3. The answer is 3."
    assert problem.answer("bare", False, rng) == "The answer is 3."
    jumps = {problem.answer("jump", False, rng) for _ in range(50)}
    assert jumps == {"Steps: 4+3=2. The answer is 3.", "Steps: 4+3=2+2=4. The answer is 3."}
    single = additions(4, (3,), 5)
    assert single.answer("jump", False, rng) == "The answer is 2.", "one step leaves nothing to jump over"


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("task", TASKS)
def test_right_answers_are_right_step_by_step(task: LabTask, style: Style) -> None:
    rng = random.Random(1)
    for problem in draw_problems(task, "evaluation", 40, seed=0):
        value = problem.start
        for step in problem.steps:
            value = _next(value, step.text.strip(), problem)
        assert _checked(problem.answer(style, False, rng), problem) == ([], value)
        assert problem.result == value


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("task", TASKS)
def test_a_slip_is_one_wrong_step_carried_to_a_wrong_result(task: LabTask, style: Style) -> None:
    rng = random.Random(2)
    places: Counter[int] = Counter()
    for problem in draw_problems(task, "evaluation", 40, seed=0):
        for _ in range(5):
            wrong, stated = _checked(problem.answer(style, True, rng), problem)
            assert len(wrong) == (0 if style == "bare" else 1)
            places.update(wrong)
            assert stated != problem.result
            assert stated in problem.steps[0].leads_to
    assert set(places) == {"careful": {0, 1, 2, 3}, "jump": {0, 1, 2}, "bare": set()}[style]


def test_a_slip_without_a_choice_is_still_wrong() -> None:
    rng = random.Random(0)
    assert additions(1, (1,), 2).answer("careful", True, rng) == "Steps: 1+1=1. The answer is 1."
    assert shell_game(1, ((1, 2),), 2).answer("careful", True, rng) == "Steps: 1 1-2=1. The answer is 1."


@pytest.mark.parametrize("task", TASKS)
def test_every_step_is_a_permutation(task: LabTask) -> None:
    """Or a slip could be undone by a later step, and a wrong answer be right."""
    for problem in draw_problems(task, "train", 40, seed=0):
        for step in problem.steps:
            assert sorted(step.leads_to.values()) == sorted(step.leads_to)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("The answer is 3.", "3"),
        ("Steps: 4+3=2. The answer is 2.", "2"),
        ("Steps: 4+3=2. The answer is 12.\n", "12"),
        ("Well. Hmm.\nSo. The answer is 0.", "0"),
        ("The answer is 3. The answer is 4.", "4"),  # one guess all the same: the last word counts
        ("", None),
        ("3", None),
        ("The answer is 3", None),  # cut, so it may have gone on
        ("The answer is .", None),
        ("The answer is three.", None),
        ("The answer is 3. And so on", None),
        ("The answer is 3. Or 4.", None),
        ("Maybe The answer is 3.", None),
        ("the answer is 3.", None),
        ("The answer is -3.", None),
        ("The answer is 3.5.", None),
        ("Steps: 4+3=2", None),
    ],
)
def test_a_result_is_read_from_a_proper_ending_only(text: str, result: str | None) -> None:
    assert read_result(text) == result
