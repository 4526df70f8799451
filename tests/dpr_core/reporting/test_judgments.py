import json
from collections.abc import Callable

import pytest

from dpr_core.evaluation.pairwise import Game, summarise
from dpr_core.reporting.judgments import JudgedAnswers, judging_warnings
from dpr_core.stats import length_adjusted_rate

Make = Callable[..., JudgedAnswers]
SCORES = [(1.0, 1.0), (1.0, 0.0), (0.5, None), (None, None), (0.0, 0.5)]


def test_a_prompt_is_worth_the_mean_of_its_readable_games(judged: Make) -> None:
    made = judged("DPR", SCORES)
    assert made.scores == {"q0": 1.0, "q1": 0.5, "q2": 0.5, "q4": 0.25}
    games = [game for prompt in made.prompts for game in prompt.games]
    assert summarise(games, 100, 0).win_rate == pytest.approx(100 * sum(made.scores.values()) / 4)


def test_the_length_adjusted_rate_takes_the_prompts_that_were_scored(judged: Make) -> None:
    made = judged("DPR", SCORES, tokens=(30, 10))
    assert made.length_adjusted() == length_adjusted_rate([1.0, 0.5, 0.5, 0.25], [30] * 4, [10] * 4, 200, 0)
    assert judged("DPR", [(1.0, 1.0)]).length_adjusted() is None


def test_a_game_is_read_as_it_was_written(judged: Make) -> None:
    (prompt,) = judged("DPR", [(1.0, None)], details={"model": "m", "output_tokens": 3}).prompts
    assert tuple(Game.of(json.loads(json.dumps(game.as_dict()))) for game in prompt.games) == prompt.games


def test_a_judge_that_changed_meanwhile_is_named(judged: Make) -> None:
    one = judged("DPR", [(1.0, 1.0)] * 3, details={"model": "gpt", "system_fingerprint": "fp_a"})
    other = judged("SR", [(1.0, 1.0)], details={"model": "gpt", "system_fingerprint": "fp_b"})
    assert judging_warnings([one]) == judging_warnings([judged("DPR", [(1.0, 1.0)])]) == []
    assert judging_warnings([one, other]) == [
        "The judging model was not the same all the time: gpt, fp_a in 6 games; gpt, fp_b in 2 games."
    ]


def test_different_judges_of_one_benchmark_are_named(judged: Make) -> None:
    every = [judged("DPR", [(1.0, 1.0)], judge=name) for name in ("b", "a")]
    assert judging_warnings(every) == ["Win rates on lab are by different judges, so they do not compare: a and b."]
    elsewhere = [judged("DPR", [(1.0, 1.0)], benchmark=name, judge=name) for name in ("b", "a")]
    assert judging_warnings(elsewhere) == []
