from collections.abc import Callable

import pytest

from dpr_core.reporting.judgments import JudgedAnswers
from dpr_core.reporting.sections import compare_policies, p_text, paired_tests_section
from dpr_core.stats import paired_test

Make = Callable[..., JudgedAnswers]


def test_two_policies_are_compared_over_the_prompts_of_both(judged: Make) -> None:
    better = judged("DPR", [(1.0, 1.0), (1.0, 0.5), (None, None), (1.0, 1.0)])
    worse = judged("SR", [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (None, 0.0)])
    (pair,) = compare_policies([better, worse])
    expected = paired_test([1.0, 0.75, 1.0], [0.0, 0.5, 0.0], 200, 0)
    assert expected is not None
    assert (pair.first, pair.second, pair.benchmark, pair.prompts) == ("DPR", "SR", "lab", 3)
    assert pair.difference == expected.difference == pytest.approx(75.0)
    assert pair.interval == (expected.low, expected.high)
    # Of the eight ways to flip three signs, two put them all on one side.
    assert (pair.p_value, pair.p_holm) == (0.25, 0.25)


def test_every_two_of_one_benchmark_and_judge_and_no_others(judged: Make) -> None:
    win, lose = [(1.0, 1.0)] * 6, [(0.0, 0.0)] * 6
    every = [
        judged("a", win),
        judged("b", lose),
        judged("c", lose),
        judged("a", win, benchmark="lima"),
        judged("b", lose, benchmark="lima"),
        judged("d", win, judge="another"),
    ]
    found = compare_policies(every)
    assert [(pair.benchmark, pair.first, pair.second) for pair in found] == [
        ("lab", "a", "b"),
        ("lab", "a", "c"),
        ("lab", "b", "c"),
        ("lima", "a", "b"),
    ]
    assert [pair.p_value for pair in found] == pytest.approx([1 / 32, 1 / 32, 1.0, 1 / 32])
    assert [pair.p_holm for pair in found] == pytest.approx([4 / 32, 4 / 32, 1.0, 4 / 32])


def test_the_section_says_how_many_comparisons_were_made(judged: Make) -> None:
    assert paired_tests_section([]) is None
    names = ["a", "b", "c", "d", "<e>"]
    some = paired_tests_section(compare_policies([judged(name, [(1.0, 0.5)] * 4) for name in names[:2]]))
    assert some is not None
    assert "1 comparison was made" in some.markdown
    assert "| a \u2212 b | +0.0 \\[+0.0, +0.0\\] | 1.00 | 1.00 | 4 |" in some.markdown
    assert "<details" not in some.html
    many = paired_tests_section(compare_policies([judged(name, [(1.0, 0.5)] * 4) for name in names]))
    assert many is not None
    assert "10 comparisons were made" in many.html
    assert "<summary>All 10 comparisons</summary>" in many.html
    assert "&lt;e&gt;" in many.html


@pytest.mark.parametrize(("p", "shown"), [(3e-5, "< 0.0001"), (0.01234, "0.0123"), (0.25, "0.25"), (1.0, "1.00")])
def test_p_values_have_the_digits_that_are_of_use(p: float, shown: str) -> None:
    assert p_text(p) == shown
