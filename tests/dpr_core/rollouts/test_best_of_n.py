import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dpr_core.data.encoding import TokenSequence
from dpr_core.masking import response_mask
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score
from dpr_core.rollouts.best_of_n import best_of_each, kl_bound, mean_log_probs, sequence_returns
from dpr_core.rollouts.engine import Sampling
from dpr_core.rollouts.in_process import InProcessEngine


def test_the_highest_of_each_group_by_hand_and_the_first_of_equal_ones() -> None:
    assert best_of_each([1.0, 3.0, 2.0, 5.0, 5.0, 5.0, -1.0, -2.0, -1.0], 3) == [1, 3, 6]
    assert best_of_each([], 3) == []


def test_a_return_is_a_sum_and_a_log_prob_is_a_mean() -> None:
    values = torch.tensor([[1.0, 2.0, 6.0], [5.0, math.nan, math.inf]])
    mask = response_mask([3, 1])
    assert sequence_returns(values, mask) == [9.0, 5.0]
    assert mean_log_probs(values, mask) == [3.0, 5.0]


@pytest.mark.parametrize("n", [2, 3])
def test_best_of_n_is_as_frequent_as_enumeration_says(toy: Callable[..., Any], n: int) -> None:
    """All 21 responses of at most two tokens: y is chosen with probability F(y)^n - F(y-)^n, and the KL bound holds."""
    model, prompt, groups = toy(deviation=0.12), (3, 1), 3000
    every = [(0,), *itertools.product(range(1, 5), range(5))]
    rows = [TokenSequence(prompt, response) for response in every]
    exact = score(Policy(model), rows, 1000)
    mask = response_mask([len(response) for response in every])
    log_sft = exact.log_probs.double().sum(1).tolist()
    means = dict(zip(every, mean_log_probs(exact.log_probs, mask), strict=True))
    probability = {response: math.exp(total) for response, total in zip(every, log_sft, strict=True)}
    assert math.isclose(sum(probability.values()), 1, abs_tol=1e-5)

    def at_most(level: float, strictly: bool) -> float:
        return sum(p for r, p in probability.items() if means[r] < level or (not strictly and means[r] == level))

    expected = {r: at_most(means[r], False) ** n - at_most(means[r], True) ** n for r in every}
    assert len(set(means.values())) == len(every)
    kl = sum(p * math.log(p / probability[r]) for r, p in expected.items() if p > 0)
    assert 0.05 < kl < kl_bound(n)

    drawn = InProcessEngine(model).generate([prompt] * (groups * n), Sampling(1.0, 2, 0), seed=5)
    chosen = Counter(drawn[i].response for i in best_of_each([means[c.response] for c in drawn], n))
    assert sum(chosen.values()) == groups
    common = [r for r, p in expected.items() if p * groups > 5]
    rest = groups - sum(chosen[r] for r in common)
    rest_expected = groups * (1 - sum(expected[r] for r in common))
    statistic = sum((chosen[r] - groups * expected[r]) ** 2 / (groups * expected[r]) for r in common)
    if rest_expected > 5:
        statistic += (rest - rest_expected) ** 2 / rest_expected
    assert statistic < 45.3, "one in a thousand with 20 degrees of freedom"


def test_the_bound_by_hand() -> None:
    assert kl_bound(8) == pytest.approx(2.0794415 - 0.875)
