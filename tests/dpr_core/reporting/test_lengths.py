from collections.abc import Callable

import pytest

from dpr_core.evaluation.questions import Question
from dpr_core.reporting.judgments import JudgedAnswers, JudgedPrompt, ModelAnswer
from dpr_core.reporting.plots import BoxStats
from dpr_core.reporting.sections import box, lengths_section, win_rate_by_length

Make = Callable[..., JudgedAnswers]


def with_tokens(judged: JudgedAnswers, tokens: list[int]) -> JudgedAnswers:
    prompts = [
        JudgedPrompt(Question(p.question.id, ("?",)), ModelAnswer(("a",), count), p.baseline, p.games)
        for p, count in zip(judged.prompts, tokens, strict=True)
    ]
    return JudgedAnswers(judged.policy, judged.benchmark, tuple(prompts), judged.judge, judged.samples)


def test_a_box_holds_quantiles_and_mean() -> None:
    assert box(list(range(101))) == BoxStats(5, 25, 50, 75, 95, 50)
    assert box([7]) == BoxStats(7, 7, 7, 7, 7, 7)


def test_prompts_are_grouped_by_their_difference_in_length(judged: Make) -> None:
    scores = [(0.0, 0.0)] * 20 + [(1.0, 0.0)] * 20 + [(1.0, 1.0)] * 20
    made = with_tokens(judged("DPR", scores), [5] * 20 + [10] * 20 + [30] * 20)
    points = win_rate_by_length(made)
    assert [(point.x, point.y) for point in points] == [(-5, 0), (0, 50), (20, 100)]
    assert [(point.low, point.high) for point in points] == [(0, 0), (50, 50), (100, 100)]


def test_equal_differences_stay_together_and_small_groups_are_not_shown(judged: Make) -> None:
    together = with_tokens(judged("DPR", [(1.0, 1.0)] * 60), [10] * 50 + [11] * 10)
    (point,) = win_rate_by_length(together)
    assert point.x == 0
    assert win_rate_by_length(judged("DPR", [(1.0, 0.0)] * 19)) == []


def test_every_benchmark_has_its_charts(judged: Make) -> None:
    far = with_tokens(judged("DPR", [(1.0, 0.0)] * 40), [5] * 20 + [30] * 20)
    near = judged("DPR", [(1.0, 0.0)] * 3, benchmark="lima")
    shown = lengths_section([far, near], "SFT")
    assert shown is not None
    assert shown.html.count("<svg") == 3
    assert "Win rate on lab by how much longer the answer is" in shown.html
    assert "Win rate on lima" not in shown.html
    assert "| SFT | lima | 10.0 | 10.0 | 10.0 | 10.0 | 10.0 | 10.0 |" in shown.markdown
    assert "| DPR | lab | 5.0 | 5.0 | 17.5 | 30.0 | 30.0 | 17.5 |" in shown.markdown
    assert lengths_section([], "SFT") is None


def test_a_point_is_at_the_mean_difference_of_its_prompts(judged: Make) -> None:
    made = with_tokens(judged("DPR", [(1.0, 0.5)] * 40), [*range(40)])
    assert [point.x for point in win_rate_by_length(made)] == pytest.approx([9.5 - 10, 29.5 - 10])
