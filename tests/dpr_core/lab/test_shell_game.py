import random
import re

from dpr_core.config.data import ShellGameConfig
from dpr_core.lab.programs import draw_shell_game, shell_game


def test_a_problem_by_hand() -> None:
    found = shell_game(2, ((1, 3), (2, 3), (1, 2)), cups=3)
    assert found.prompt == "Ball at 2. Swap 1-3, swap 2-3, swap 1-2."
    assert found.id == "2 1-3 2-3 1-2"
    assert found.result == 3
    assert found.answer("careful", False, random.Random(0)) == "Steps: 2 1-3=2 2-3=3 1-2=3. The answer is 3."


def test_the_ball_is_where_a_row_of_cups_says_it_is() -> None:
    """An independent way to play: move real cups instead of following the ball."""
    rng = random.Random(1)
    for _ in range(200):
        found = draw_shell_game(ShellGameConfig(cups=5, swaps=7), rng)
        start, *numbers = map(int, re.findall(r"\d", found.prompt))
        row = [cup == start for cup in range(1, 6)]
        for a, b in zip(numbers[::2], numbers[1::2], strict=True):
            row[a - 1], row[b - 1] = row[b - 1], row[a - 1]
        assert found.result == row.index(True) + 1


def test_drawn_problems_are_within_the_tasks_bounds() -> None:
    rng = random.Random(0)
    drawn = [draw_shell_game(ShellGameConfig(cups=3, swaps=2), rng) for _ in range(300)]
    swaps = {swap for p in drawn for swap in p.id.split()[1:]}
    assert swaps == {"1-2", "1-3", "2-3"}, "two different cups, the smaller number first: one way to write a game"
    assert {len(p.steps) for p in drawn} == {2}
    assert {p.start for p in drawn} == {1, 2, 3}
