import pytest

from perf.side_by_side import OURS, check_equal_lengths


def test_random_lengths_may_differ_by_the_tolerance() -> None:
    check_equal_lengths({OURS: [40, 60], "other": [100, 20]}, tolerance=0.2)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ([50, 71], "121 tokens and ours 100, which is 21% apart"),
        ([70, 9], "21% apart"),
        ([100], "drew 1 responses, ours 2"),
    ],
)
def test_more_or_less_or_fewer_responses_are_not_the_same_work(other: list[int], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check_equal_lengths({OURS: [40, 60], "other": other}, tolerance=0.2)
