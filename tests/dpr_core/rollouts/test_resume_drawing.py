"""Answers that are drawn in waves: a wave that is kept is not drawn again, and what comes out is the same."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dpr_core.rollouts.best_of_n import best_of_each
from dpr_core.rollouts.decode import DecodeLoop
from dpr_core.rollouts.engine import Completion, OnProgress, Sampling, completions_from_state, completions_state
from dpr_core.rollouts.in_process import ContrastiveReference, InProcessEngine
from dpr_core.rollouts.multi_turn import Conversation, answer_questions
from dpr_core.state import read, write
from tests.interruption import Interruptible, assert_the_same_however_interrupted

END = 0
SAMPLING = Sampling(0.8, 4, END)
SCRIPTS = [
    script
    for copy in "123"
    for script in (
        Conversation(f"a{copy}", ((1, 2), (3,), (4, 4)), 0.8),
        Conversation(f"b{copy}", ((3,), (1,)), 0.8),
        Conversation(f"c{copy}", ((4, 4, 1),), 0.0),
        Conversation(f"d{copy}", ((2,), (2, 1)), 0.8),
    )
]


class Counting(InProcessEngine):
    """Remembers how many rows each wave had."""

    waves: list[int]

    def _wave(self, models: Any, prompts: Any, uniforms: Any, sampling: Sampling, at_once: int) -> DecodeLoop:
        self.waves.append(len(prompts))
        return super()._wave(models, prompts, uniforms, sampling, at_once)


@pytest.mark.parametrize("policy", ["as trained", "contrastive", "best of 3"])
def test_conversations(toy: Callable[..., Any], tmp_path: Path, policy: str) -> None:
    n = 3 if policy == "best of 3" else 1
    drawn_rows: list[int] = []

    def run(recorder: Interruptible) -> Any:
        engine = Counting(
            toy(0), rows=2, contrast=ContrastiveReference(toy(1), 0.5) if policy == "contrastive" else None
        )
        engine.waves = drawn_rows

        def draw(
            prompts: Sequence[tuple[int, ...]],
            sampling: Sampling,
            seed: int,
            on_progress: OnProgress,
            drawn: dict[int, Completion],
        ) -> list[Completion]:
            repeated = [prompt for prompt in prompts for _ in range(n)]
            completions = engine.generate(repeated, sampling, seed, on_progress, drawn)
            return [completions[i] for i in best_of_each([sum(c.log_probs) for c in completions], n)]

        return answer_questions(SCRIPTS, draw, SAMPLING, 5, 100, recorder)

    run(Interruptible(tmp_path / "whole"))
    in_one = list(drawn_rows)
    assert sum(in_one) == n * sum(len(each.turns) for each in SCRIPTS)
    kept = assert_the_same_however_interrupted(run, tmp_path / "runs")
    assert kept == len(in_one)
    assert max(in_one) > 2, "slots were filled again"
    assert drawn_rows == in_one * (kept + 3), "the same waves, and each of them once"


def test_only_the_missing_rows_are_drawn_and_all_are_reported(toy: Callable[..., Any]) -> None:
    prompts = [(1, 2), (3,), (4, 4, 1), (2,)]
    engine = Counting(toy(0), rows=2)
    engine.waves = []
    whole = engine.generate(prompts, SAMPLING, 3)
    engine.waves.clear()
    told: list[tuple[int, int]] = []
    drawn = {1: whole[1], 3: whole[3], 0: whole[0]}
    found = engine.generate(prompts, SAMPLING, 3, lambda done, total: told.append((done, total)), drawn)
    assert [c.response for c in found] == [c.response for c in whole]
    assert (engine.waves, told, sorted(drawn)) == ([1], [(4, 4)], [0, 1, 2, 3])


def test_completions_are_kept_to_the_bit(tmp_path: Path) -> None:
    drawn = {
        7: Completion((1, 2, 3), (4, END), (-0.1, -1e-9)),
        2: Completion((5,), (END,), (-0.30000000000000004,)),
    }
    write(completions_state(drawn), tmp_path)
    assert completions_from_state(read(tmp_path)) == drawn
    assert list(completions_from_state(read(tmp_path))) == [7, 2]
    (tmp_path / "none").mkdir()
    write(completions_state({}), tmp_path / "none")
    assert completions_from_state(read(tmp_path / "none")) == {}
