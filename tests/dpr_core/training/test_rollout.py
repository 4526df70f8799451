import math
import statistics

import pytest
import torch

from dpr_core.training.rollout import repetition, signals

MASK = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
LOG_SFT = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, 9.0, 9.0], [-1.0, -0.5, 9.0]])
LOG_REF = torch.tensor([[-2.0, -2.0, -2.0], [-0.25, 7.0, 7.0], [-3.0, -1.5, 7.0]])
RESPONSES = [(1, 2, 3), (4,), (5, 6)]


def test_the_two_witnesses_of_a_hand_made_batch() -> None:
    metrics = signals(RESPONSES, LOG_SFT, LOG_REF, MASK)
    assert metrics["log_sft"] == pytest.approx(-8.0 / 6)
    assert metrics["contrast"] == pytest.approx((0.0 - 0.25 + 3.0) / 3)
    assert metrics["contrast_error"] == pytest.approx(statistics.stdev([0.0, -0.25, 3.0]) / math.sqrt(3))


def test_the_error_of_the_token_mean_is_that_of_many_batches() -> None:
    """Independent computation: batches are drawn again and again, and the deviation of their means is taken."""
    generator = torch.Generator().manual_seed(0)
    means, errors = [], []
    for _ in range(400):
        lengths = torch.randint(1, 9, (200,), generator=generator)
        mask = torch.arange(8)[None, :] < lengths[:, None]
        # Long responses are likelier a token, so that the number of tokens and their sum go together.
        log_sft = -torch.rand(200, 8, generator=generator) - 3.0 / lengths[:, None]
        metrics = signals([(0,)] * 200, log_sft, torch.zeros(200, 8), mask)
        means.append(metrics["log_sft"])
        errors.append(metrics["log_sft_error"])
    assert statistics.fmean(errors) == pytest.approx(statistics.stdev(means), rel=0.15)


def test_what_is_outside_the_mask_does_not_count() -> None:
    changed = torch.where(MASK, LOG_SFT, -777.0)
    assert signals(RESPONSES, changed, LOG_REF, MASK) == signals(RESPONSES, LOG_SFT, LOG_REF, MASK)


def test_a_single_response_has_no_error() -> None:
    metrics = signals(RESPONSES[:1], LOG_SFT[:1], LOG_REF[:1], MASK[:1])
    assert (metrics["log_sft_error"], metrics["contrast_error"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("responses", "share"),
    [
        ([(1, 2, 3, 4, 5, 6)], 0.0),
        ([(1, 1, 1, 1, 1, 1)], 2 / 3),
        ([(1, 2, 3, 4, 1, 2, 3, 4)], 1 / 5),
        ([(1, 2, 3, 4), (1, 2, 3, 4)], 0.0),
        ([(1, 1, 1, 1, 1), (1, 2, 3, 4, 5)], 1 / 4),
        ([(1, 2, 3)], 0.0),
    ],
)
def test_repetition_is_the_share_of_runs_of_four_that_a_response_held_before(
    responses: list[tuple[int, ...]], share: float
) -> None:
    assert repetition(responses) == pytest.approx(share)
