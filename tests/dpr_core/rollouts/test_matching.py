import math
from collections.abc import Callable

import pytest

from dpr_core.rollouts.matching import match


def softmax_entropy(temperature: float) -> float:
    """Of four actions, from 0 to log 4."""
    weights = [math.exp(-gap / temperature) for gap in (0, 1, 2, 5)]
    return -sum(w / sum(weights) * math.log(w / sum(weights)) for w in weights if w)


@pytest.mark.parametrize("target", [0.01, 0.2, 0.6, 1.0])
@pytest.mark.parametrize("measure", [softmax_entropy, lambda k: 0.03 * k**2, lambda k: 5 * k**1.5 + k**3])
def test_the_strength_is_found_within_the_tolerance_in_few_trials(
    measure: Callable[[float], float], target: float
) -> None:
    calls = []
    found = match(lambda x: calls.append(x) or measure(x), target, 0.7, 64.0, 0.02, 8)
    assert found.reached == measure(found.strength) == pytest.approx(target, rel=0.02)
    assert found.trials == len(calls) == len(set(calls)) <= 8


def test_what_cannot_be_reached_ends_at_the_nearest_end() -> None:
    found = match(softmax_entropy, 1.5, 0.7, 2.0, 0.02, 8)
    assert (found.strength, found.reached) == (2.0, softmax_entropy(2.0))
    assert found.trials <= 6


def test_a_target_of_nothing_needs_no_trial() -> None:
    assert match(lambda x: pytest.fail("tried"), 0.0, 0.7, 2.0, 0.02, 8) == (0.0, 0.0, 0)


def test_no_more_trials_are_made_than_allowed_and_the_nearest_is_taken() -> None:
    calls: dict[float, float] = {}

    def jumps(x: float) -> float:
        calls[x] = 0.1 * x if x < 0.5 else math.nan
        return calls[x]

    found = match(jumps, 1.0, 0.3, 2.0, 0.01, 5)
    assert found.trials == len(calls) == 5
    assert found.strength == max(x for x in calls if x < 0.5)
