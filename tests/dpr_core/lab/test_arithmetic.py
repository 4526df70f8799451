import itertools
import random
import re
from collections import Counter

import pytest

from dpr_core.config.data import ArithmeticTask, LabSource
from dpr_core.errors import UsageError
from dpr_core.lab.arithmetic import (
    Problem,
    Style,
    answer,
    demonstrations,
    draw_problems,
    problems,
    read_result,
    split_of,
)

TASK = ArithmeticTask(modulus=5, operations=4, largest_addend=6)
STYLES: tuple[Style, ...] = ("careful", "bare", "jump")


def _checked(text: str, problem: Problem) -> tuple[list[int], str | None]:
    """Read an answer sum by sum: the places of wrong sums among those shown, and the number it ends on."""
    stated = re.search(r"The answer is (\d+)\.$", text)
    shown = re.match(r"Steps: (\d+)((?:\+\d+=\d+)*)\. ", text)
    if shown is None:
        return [], stated and stated[1]
    value, wrong = int(shown[1]), []
    assert value == problem.start
    for i, (addend, result) in enumerate(re.findall(r"\+(\d+)=(\d+)", shown[2])):
        assert int(addend) == problem.addends[i]
        if (value + int(addend)) % problem.modulus != int(result):
            wrong.append(i)
        value = int(result)
    return wrong, stated and stated[1]


def test_a_problem_by_hand() -> None:
    problem = Problem(4, (3, 2, 4), 5)
    assert problem.prompt == "Start at 4, add 3, add 2, add 4."
    assert problem.id == "4+3+2+4"
    assert problem.result == 3


def test_answers_by_hand() -> None:
    problem, rng = Problem(4, (3, 2, 4), 5), random.Random(0)
    assert answer(problem, "careful", False, rng) == "Steps: 4+3=2+2=4+4=3. The answer is 3."
    assert answer(problem, "bare", False, rng) == "The answer is 3."
    jumps = {answer(problem, "jump", False, rng) for _ in range(50)}
    assert jumps == {"Steps: 4+3=2. The answer is 3.", "Steps: 4+3=2+2=4. The answer is 3."}
    assert answer(Problem(4, (3,), 5), "jump", False, rng) == "The answer is 2.", "one sum leaves nothing to jump over"


@pytest.mark.parametrize("style", STYLES)
def test_right_answers_are_right_step_by_step(style: Style) -> None:
    rng = random.Random(1)
    for problem in draw_problems(TASK, "evaluation", 40, seed=0):
        wrong, stated = _checked(answer(problem, style, False, rng), problem)
        assert wrong == []
        assert stated == str((problem.start + sum(problem.addends)) % 5)
        assert 0 <= problem.start < 5
        assert len(problem.addends) == 4
        assert all(1 <= n <= 6 for n in problem.addends)


@pytest.mark.parametrize("style", STYLES)
def test_a_slip_is_one_wrong_sum_carried_to_a_wrong_result(style: Style) -> None:
    rng = random.Random(2)
    places: Counter[int] = Counter()
    for problem in draw_problems(TASK, "evaluation", 40, seed=0):
        for _ in range(5):
            wrong, stated = _checked(answer(problem, style, True, rng), problem)
            assert len(wrong) == (0 if style == "bare" else 1)
            places.update(wrong)
            assert stated is not None
            assert stated != str(problem.result)
            assert 0 <= int(stated) < 5
    assert set(places) == {"careful": {0, 1, 2, 3}, "jump": {0, 1, 2}, "bare": set()}[style]


def test_a_slip_without_steps_is_still_wrong_with_two_numbers() -> None:
    rng = random.Random(0)
    assert answer(Problem(1, (1,), 2), "careful", True, rng) == "Steps: 1+1=1. The answer is 1."


def test_training_and_evaluation_prompts_never_meet() -> None:
    task = ArithmeticTask(modulus=3, operations=3, largest_addend=3, evaluation_share=0.3)
    sides = {split: {p.id for p in problems(task, split, random.Random(0))} for split in ("train", "evaluation")}  # type: ignore[arg-type]
    assert not sides["train"] & sides["evaluation"]
    every = {f"{a}+{b}+{c}+{d}" for a in (0, 1, 2) for b, c, d in itertools.product((1, 2, 3), repeat=3)}
    assert sides["train"] | sides["evaluation"] == every
    assert 0.15 < len(sides["evaluation"]) / len(every) < 0.45


def test_the_split_is_a_matter_of_the_numbers_alone() -> None:
    """Whatever the seed and the modulus: 4+0+1+2 modulo 5 and modulo 10 are the same prompt to a reader."""
    other = ArithmeticTask(modulus=10, operations=3)
    for start in range(5):
        for addends in itertools.product(range(5), repeat=3):
            assert split_of(Problem(start, addends, 5), TASK) == split_of(Problem(start, addends, 10), other)
    demonstrated = {row[0] for seed in range(3) for row in demonstrations(LabSource(task=TASK, rows=500), seed)}
    asked = {p.id for seed in range(3) for p in draw_problems(TASK, "evaluation", 100, seed)}
    assert demonstrated
    assert asked
    assert not demonstrated & asked


def test_demonstrations_are_distinct_and_repeatable() -> None:
    source = LabSource(task=TASK, rows=300, careful=0.5, slips=0.25)
    rows = list(demonstrations(source, seed=0))
    assert len(rows) == 300
    assert len({prompt for _, prompt, _ in rows}) == len({id for id, _, _ in rows}) == 300
    assert rows == list(demonstrations(source, seed=0))
    assert rows != list(demonstrations(source, seed=1))


def test_demonstrations_have_their_shares_of_style_and_slips() -> None:
    """Within three deviations of 2000 draws."""
    source = LabSource(task=ArithmeticTask(operations=6), rows=2000, careful=0.7, slips=0.2)
    careful = slipped = 0
    for id, prompt, response in demonstrations(source, seed=3):
        start, *addends = map(int, id.split("+"))
        problem = Problem(start, tuple(addends), 5)
        assert prompt == problem.prompt
        careful += response.startswith("Steps:")
        slipped += read_result(response) != str(problem.result)
    assert careful / 2000 == pytest.approx(0.7, abs=0.031)
    assert slipped / 2000 == pytest.approx(0.2, abs=0.027)


def test_too_few_prompts_are_a_wrong_request() -> None:
    task = ArithmeticTask(modulus=2, operations=2, largest_addend=3)
    every = [Problem(a, addends, 2) for a in (0, 1) for addends in itertools.product((1, 2, 3), repeat=2)]
    available = sum(split_of(problem, task) == "train" for problem in every)
    assert len(list(demonstrations(LabSource(task=task, rows=available), 0))) == available
    with pytest.raises(UsageError, match=f"only {available} distinct training prompts.*rows=50"):
        list(demonstrations(LabSource(task=task, rows=50), 0))
    with pytest.raises(UsageError, match="evaluation prompts.*prompts=50"):
        draw_problems(task, "evaluation", 50, 0)


def test_evaluation_prompts_are_distinct_and_repeatable() -> None:
    found = draw_problems(TASK, "evaluation", 200, seed=0)
    assert len({p.id for p in found}) == 200
    assert all(split_of(p, TASK) == "evaluation" for p in found)
    assert found == draw_problems(TASK, "evaluation", 200, seed=0)
    assert found != draw_problems(TASK, "evaluation", 200, seed=1)


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
